"""An evaluation that is stopped goes on without losing or repeating a problem, and knows neither batches nor ranks."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from real_runs import MODEL, running
from safetensors.torch import load_file, save_file

from apr_train.compose import load
from apr_train.config import ConfigError
from apr_train.evaluation import check
from apr_train.lifecycle import REQUEUE
from apr_train.progress import reached

SETTINGS = [each for each in MODEL if not each.startswith("eval.")]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that nobody trained."""
    folder = tmp_path_factory.mktemp("fresh")
    overrides = [f"output_dir={folder}", *SETTINGS, "eval.problems=1", "sft.steps=1", "algorithm.steps=0"]
    run("train", *overrides, "sft.problems_per_step=2", "sft.warmup_steps=0")
    return folder / "sft"


def run(script: str, *overrides: str, ranks: int = 1, code: int = 0) -> str:
    """What it printed; its errors, where it is to end with `code`."""
    own = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *own, str(ROOT / f"scripts/{script}.py"), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stderr if code else done.stdout


def table(shown: str) -> list[str]:
    """The lines of a table, without what libraries say before it."""
    return [line for line in shown.splitlines() if line.startswith(("│", "┃"))]


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "heldout.jsonl").read_text().splitlines()]


def test_a_stopped_evaluation_neither_loses_nor_repeats_a_problem(tmp_path: Path, fresh: Path) -> None:
    own = [*SETTINGS, f"model.path={fresh}", "eval.problems=21", "eval.batch_problems=4"]
    shown = run("evaluate", *own, f"output_dir={tmp_path / 'whole'}")
    assert " 21 " in table(shown)[1] and max(map(len, table(shown))) <= 80
    wanted = records(tmp_path / "whole")
    assert len({row["problem_id"] for row in wanted}) == 21
    broken, notes = tmp_path / "broken", tmp_path / "broken" / "heldout.part.jsonl"
    command = [sys.executable, str(ROOT / "scripts/evaluate.py"), *own, f"output_dir={broken}"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = len(notes.read_text().splitlines()) if notes.exists() else 0
        with running(command, tmp_path / "log") as started:
            started.until(lambda n=before: notes.exists() and len(notes.read_text().splitlines()) > n, 120)
            os.kill(started.process.pid, number)
            started.ended(60)
            assert started.process.returncode == (REQUEUE if number == signal.SIGTERM else -number)
    assert reached(broken) == f"broken/{len(notes.read_text().splitlines())}"  # for the script that requeues
    assert 8 <= len(notes.read_text().splitlines()) < 21
    assert table(run("evaluate", *own, f"output_dir={broken}")) == table(shown)
    assert records(broken) == wanted and not notes.exists()
    assert table(run("evaluate", *own, f"output_dir={broken}")) == table(shown)  # of what is finished


def test_other_weights_under_the_same_path_are_another_evaluation(tmp_path: Path, fresh: Path) -> None:
    shutil.copytree(fresh, tmp_path / "model")
    own = [*SETTINGS, f"model.path={tmp_path / 'model'}", "eval.problems=2", f"output_dir={tmp_path / 'run'}"]
    run("evaluate", *own)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "model" / "model.safetensors")
    refused = run("evaluate", *own, code=2)
    assert "weights was " in refused and "resume=never" in refused


def test_an_evaluation_does_not_remove_the_run_that_it_judges(fresh: Path) -> None:
    own = [*SETTINGS, f"model.path={fresh}", "eval.problems=2", f"output_dir={fresh.parent}", "resume=never"]
    assert "holds training and not an evaluation" in run("evaluate", *own, code=2)
    assert (fresh.parent / "summary.json").exists()


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(tmp_path: Path, fresh: Path) -> None:
    own = [*SETTINGS, f"model.path={fresh}", "eval.problems=9", "eval.batch_problems=4"]
    for ranks in (1, 2):
        run("evaluate", *own, f"output_dir={tmp_path / str(ranks)}", ranks=ranks)
    assert records(tmp_path / "1") == records(tmp_path / "2")


def test_what_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval\.problems=0"):
        check(load(["model.path=x", "eval.problems=0"]))
    with pytest.raises(ConfigError, match=r"model\.path is not set"):
        check(load([]))
