"""A real self-training run, killed by SIGKILL while it samples, ends as one that was not."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from apr_train.harvest import Progress, read_kept

OVERRIDES = [
    *("name=self", "rollout=torch", "logger=disabled", "logger.progress=false", "seed=3", "eval.problems=12"),
    *("model.hidden_size=64", "model.intermediate_size=64", "model.heads=2", "model.kv_heads=2"),
    *("data.train_problems=64", "data.options.parts_max=3", "data.options.steps_min=3", "data.options.steps_max=4"),
    *("sft.steps=300", "sft.problems_per_step=16", "sft.warmup_steps=5", "sft.parallel_share=1.0"),
    *("rollout.max_response_tokens=120", "rollout.max_thread_tokens=20", "self_train.rounds=2"),
    *("self_train.samples_per_problem=4", "self_train.keep_per_problem=2", "self_train.batch_problems=8"),
    "self_train.source=last",
]


def command(folder: Path) -> list[str]:
    return [sys.executable, str(ROOT / "scripts/self_train.py"), f"output_dir={folder}", *OVERRIDES]


def result(folder: Path) -> tuple[Any, list[list[tuple[int, ...]]]]:
    summary = json.loads((folder / "summary.json").read_text())
    del summary["wall_seconds"]
    kept = [read_kept(folder / f"round{k}") for k in (1, 2)]
    return summary, [[segment.ids for t in each for segment in t.segments] for each in kept]


@pytest.mark.slow
def test_a_real_run_killed_while_it_samples_goes_on_to_the_same_model(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = subprocess.run(command(whole), capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "rejected, by reason" in first.stdout
    child = subprocess.Popen(command(killed), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not 1 <= Progress.load(killed / "round1").batches < 7:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert 1 <= Progress.load(killed / "round1").batches < 7 and not (killed / "summary.json").exists()
    again = subprocess.run(command(killed), capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert result(killed) == result(whole)
    rounds = result(whole)[0]["rounds"]
    assert rounds[1]["kept"] > 20 and rounds[2]["kept"] > 0
