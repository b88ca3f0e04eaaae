"""Whole runs by real processes, small enough to be interrupted many times; what they leave, to compare."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from conftest import ROOT

from apr_train.vocabulary import reproducible

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


def command(folder: Path, *overrides: str, ranks: int = 1) -> list[str]:
    """scripts/train.py, which interrupts itself where INTERRUPT says so."""
    own = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *own, str(ROOT / "tests/interrupted_run.py"), f"output_dir={folder}", *overrides]


def environment(interrupt: str = "", **more: str) -> dict[str, str]:
    """For `command`."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more
    return (
        {key: value for key, value in os.environ.items() if key != "INTERRUPT"}
        | own
        | ({"INTERRUPT": interrupt} if interrupt else {})
    )


def start(folder: Path, *overrides: str, ranks: int = 1, interrupt: str = "") -> int:
    """The exit code of a run, which must be 0 where nothing interrupts it; the output goes beside the folder."""
    done = subprocess.run(
        command(folder, *overrides, ranks=ranks),
        env=environment(interrupt),
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    (folder.parent / f"{folder.name}.log").write_text(done.stdout + done.stderr)
    assert interrupt or done.returncode == 0, done.stderr[-3000:]
    return done.returncode


def results(folder: Path, ranks: int) -> dict[str, Any]:
    """All that a run leaves and that does not measure time."""
    summary = json.loads((folder / "summary.json").read_text())
    del summary["wall_seconds"], summary["command"]  # which names the folder
    return {
        "curve": [reproducible(row) for row in logged(folder) if "eval/problems" not in row],
        "evaluations": [row for row in logged(folder) if "eval/problems" in row],
        "weights": (folder / "rl" / "model.safetensors").read_bytes(),
        "rollouts": [(folder / f"rollouts-rank{rank}.jsonl").read_text() for rank in range(ranks)],
        "heldout": (folder / "rl" / "heldout.jsonl").read_text(),
        "summary": summary,
    }


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are whole."""
    file = folder / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class Running:
    """A process in the background whose output goes to a file; `output` reads it."""

    def __init__(self, arguments: list[str], log: Path, **variables: str) -> None:
        self.log = log
        with log.open("a") as out:
            self.process = subprocess.Popen(arguments, env=environment(**variables), stdout=out, stderr=out)

    @property
    def output(self) -> str:
        return self.log.read_text()

    def tree(self) -> list[psutil.Process]:
        """It and all its descendants."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def until(self, happened: Any, seconds: float) -> float:
        """Waits until `happened()` is true; returns the seconds that took. AssertionError, with the output, if it takes
        longer or the process ends before."""
        began = time.perf_counter()
        while not happened():
            assert time.perf_counter() - began < seconds, f"{seconds} s are over\n{self.output[-3000:]}"
            assert self.process.poll() is None or happened(), self.output[-3000:]
            time.sleep(0.02)
        return time.perf_counter() - began

    def ended(self, seconds: float) -> float:
        """Waits for its end; returns the seconds that took."""
        began = time.perf_counter()
        self.process.wait(seconds)
        return time.perf_counter() - began


@contextmanager
def running(arguments: list[str], log: Path, **variables: str) -> Iterator[Running]:
    """A process and its descendants, which are killed at the end if they are still there."""
    run = Running(arguments, log, **variables)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            for each in reversed(run.tree()):
                each.kill()
            run.process.wait()
