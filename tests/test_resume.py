"""Runs that are interrupted and started again, by real processes: their curves are those of a run that was not.

Slow: `make test-resume`. Four points, one and two ranks, without DeepSpeed and at every ZeRO stage: 40 cases.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from real_runs import MODEL, RL, results, start

from apr_train.checkpoint import Checkpoints
from apr_train.lifecycle import REQUEUE

POINTS = {"mid-rollout": 4, "mid-update": 4, "mid-save": 4, "between-epochs": 3}
EXPECTED = {"mid-rollout": 3, "mid-update": 2, "mid-save": 2, "between-epochs": 3}
"""The step that the second start goes on from."""


WHOLE: dict[tuple[str, int, int], dict[str, Any]] = {}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", ["none", "zero0", "zero1", "zero2", "zero3"])
def test_an_interrupted_run_ends_as_one_that_was_not(
    tmp_path: Path, warm_policy: Path, stage: str, ranks: int, point: str
) -> None:
    interrupted(tmp_path, warm_policy, stage, ranks, point, rank=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "ranks", "point"),
    [("none", 1, "mid-update"), ("zero3", 2, "mid-rollout"), ("zero3", 2, "mid-save"), ("zero2", 2, "mid-update")],
)
def test_an_interrupted_run_with_adapters_ends_as_one_that_was_not(
    tmp_path: Path, warm_policy: Path, stage: str, ranks: int, point: str
) -> None:
    interrupted(tmp_path, warm_policy, stage, ranks, point, rank=4)


def interrupted(tmp_path: Path, policy: Path, stage: str, ranks: int, point: str, *, rank: int) -> None:
    """`rank`: of LoRA; 0 trains all weights."""
    overrides = (*MODEL, *RL, f"model.path={policy}", f"deepspeed={stage}", f"model.lora.rank={rank}")
    if (stage, ranks, rank) not in WHOLE:
        start(tmp_path / "whole", *overrides, ranks=ranks)
        WHOLE[stage, ranks, rank] = results(tmp_path / "whole", ranks)
        assert len({row["loss/policy"] for row in WHOLE[stage, ranks, rank]["curve"]}) > 3
    broken = tmp_path / "broken"
    code = start(broken, *overrides, ranks=ranks, interrupt=f"{point}:{POINTS[point]}")
    stopped = point in ("mid-rollout", "between-epochs")
    assert code != 0 and (ranks > 1 or code == (REQUEUE if stopped else -9))
    assert not (broken / "summary.json").exists()
    assert Checkpoints(broken / "checkpoints" / "rl").steps()[-1] == EXPECTED[point]
    start(broken, *overrides, ranks=ranks)
    found = results(broken, ranks)
    for name, value in WHOLE[stage, ranks, rank].items():
        assert found[name] == value, f"{name} differs"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_stopped_in_its_warm_start_ends_as_one_that_was_not(tmp_path: Path, rank: int) -> None:
    """SIGTERM from outside, at a moment nobody chose."""
    settings = ("sft.steps=60", "sft.problems_per_step=8", "checkpoint.every=7", f"model.lora.rank={rank}")
    overrides = (*MODEL, *RL, *settings)
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
def test_a_finished_run_is_not_trained_again_unless_asked(tmp_path: Path, warm_policy: Path) -> None:
    overrides = (*MODEL, *RL, f"model.path={warm_policy}")
    start(tmp_path / "run", *overrides)
    before = (tmp_path / "run" / "rl" / "model.safetensors").stat().st_mtime_ns
    start(tmp_path / "run", *overrides)
    assert "finished: resume=never starts it anew" in (tmp_path / "run.log").read_text()
    assert (tmp_path / "run" / "rl" / "model.safetensors").stat().st_mtime_ns == before
    start(tmp_path / "run", *overrides, "resume=never")
    assert (tmp_path / "run" / "rl" / "model.safetensors").stat().st_mtime_ns != before
