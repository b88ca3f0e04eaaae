"""Runs that are interrupted and started again, by real processes: their curves are those of a run that was not.

Slow: `make test-resume`. Four points, one and two ranks, without DeepSpeed and at every ZeRO stage: 40 cases.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from apr_train.checkpoint import Checkpoints
from apr_train.lifecycle import REQUEUE

MODEL = (
    *("model.hidden_size=64", "model.intermediate_size=128", "model.heads=2", "model.kv_heads=2"),
    *("data.options.parts_max=2", "data.options.steps_min=2", "data.options.steps_max=3", "eval.problems=8"),
    *("rollout=torch", "logger=disabled", "logger.progress=false", "logger.rollouts_every=1", "seed=5"),
)
SFT = ("sft.steps=250", "sft.problems_per_step=16", "sft.warmup_steps=10", "algorithm.steps=0", "checkpoint.every=0")
RL = (
    *("sft.steps=0", "algorithm.steps=6", "algorithm.prompts_per_step=8", "algorithm.group_size=4"),
    *("algorithm.learning_rate=1e-3", "algorithm.micro_batches=2", "data.train_problems=24", "checkpoint.every=2"),
)
"""Three steps an epoch; a checkpoint after steps 2, 4 and 6."""
POINTS = {"mid-rollout": 4, "mid-update": 4, "mid-save": 4, "between-epochs": 3}
EXPECTED = {"mid-rollout": 3, "mid-update": 2, "mid-save": 2, "between-epochs": 3}
"""The step that the second start goes on from."""


def start(folder: Path, *overrides: str, ranks: int = 1, interrupt: str = "") -> int:
    own = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *own, str(ROOT / "tests/interrupted_run.py"), f"output_dir={folder}", *MODEL, *overrides]
    environment = os.environ | {"INTERRUPT": interrupt, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if not interrupt:
        del environment["INTERRUPT"]
    done = subprocess.run(
        command, env=environment, cwd=folder.parent, capture_output=True, text=True, timeout=600, check=False
    )
    (folder.parent / f"{folder.name}.log").write_text(done.stdout + done.stderr)
    assert interrupt or done.returncode == 0, done.stderr[-3000:]
    return done.returncode


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that is right now and then, so that there is a gradient to get wrong."""
    folder = tmp_path_factory.mktemp("model") / "warm"
    start(folder, *SFT)
    return folder / "sft"


def results(folder: Path, ranks: int) -> dict[str, Any]:
    """All that a run leaves and that does not measure time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    del summary["wall_seconds"]
    return {
        "curve": [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in lines],
        "weights": (folder / "rl" / "model.safetensors").read_bytes(),
        "rollouts": [(folder / f"rollouts-rank{rank}.jsonl").read_text() for rank in range(ranks)],
        "heldout": (folder / "rl" / "heldout.jsonl").read_text(),
        "summary": summary,
    }


WHOLE: dict[tuple[str, int], dict[str, Any]] = {}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", ["none", "zero0", "zero1", "zero2", "zero3"])
def test_an_interrupted_run_ends_as_one_that_was_not(
    tmp_path: Path, model: Path, stage: str, ranks: int, point: str
) -> None:
    overrides = (*RL, f"model.path={model}", f"deepspeed={stage}")
    if (stage, ranks) not in WHOLE:
        start(tmp_path / "whole", *overrides, ranks=ranks)
        WHOLE[stage, ranks] = results(tmp_path / "whole", ranks)
        assert len({row["loss/policy"] for row in WHOLE[stage, ranks]["curve"]}) > 3
    broken = tmp_path / "broken"
    code = start(broken, *overrides, ranks=ranks, interrupt=f"{point}:{POINTS[point]}")
    stopped = point in ("mid-rollout", "between-epochs")
    assert code != 0 and (ranks > 1 or code == (REQUEUE if stopped else -9))
    assert not (broken / "summary.json").exists()
    assert Checkpoints(broken / "checkpoints" / "rl").steps()[-1] == EXPECTED[point]
    start(broken, *overrides, ranks=ranks)
    found = results(broken, ranks)
    for name, value in WHOLE[stage, ranks].items():
        assert found[name] == value, f"{name} differs"


@pytest.mark.slow
def test_a_run_stopped_in_its_warm_start_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """SIGTERM from outside, at a moment nobody chose."""
    overrides = (*MODEL, *RL, "sft.steps=60", "sft.problems_per_step=8", "checkpoint.every=7")
    start(tmp_path / "whole", *overrides)
    command = [sys.executable, str(ROOT / "scripts/train.py"), f"output_dir={tmp_path / 'broken'}", *overrides]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("sft 21/"):
            child.terminate()
            break
    child.stderr.read()
    assert child.wait() == REQUEUE
    start(tmp_path / "broken", *overrides)
    assert results(tmp_path / "broken", 1) == results(tmp_path / "whole", 1)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_unless_asked(tmp_path: Path, model: Path) -> None:
    overrides = (*RL, f"model.path={model}")
    start(tmp_path / "run", *overrides)
    before = (tmp_path / "run" / "rl" / "model.safetensors").stat().st_mtime_ns
    start(tmp_path / "run", *overrides)
    assert "finished: resume=never starts it anew" in (tmp_path / "run.log").read_text()
    assert (tmp_path / "run" / "rl" / "model.safetensors").stat().st_mtime_ns == before
    start(tmp_path / "run", *overrides, "resume=never")
    assert (tmp_path / "run" / "rl" / "model.safetensors").stat().st_mtime_ns != before
