"""Whole runs whose parts are killed, stopped, damaged or starved, five times each: nothing is lost.

Slow: `make test-chaos` prints how long each took to go on, or to end with a named error. "Nothing is lost" means that
the run, started again where it ended, leaves what an undisturbed one leaves, byte for byte.
"""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from chaos import FINE, MOST_SECONDS, ROUNDS, SEED, rl_step, took
from real_runs import MODEL, Running, command, results, running, start

from apr_train.checkpoint import Checkpoints
from apr_train.lifecycle import REQUEUE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("seconds_table")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, warm_policy: Path) -> dict[int, dict[str, Any]]:
    """What undisturbed runs of one and of two ranks leave."""
    folder = tmp_path_factory.mktemp("whole")
    for ranks in (1, 2):
        start(folder / str(ranks), *FINE, f"model.path={warm_policy}", ranks=ranks)
    return {ranks: results(folder / str(ranks), ranks) for ranks in (1, 2)}


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        assert found[name] == value, f"{name} differs"


def ranks_of(run: Running) -> list[psutil.Process]:
    """The training processes below a torchrun, rank 0 first."""
    found = {int(each.environ()["RANK"]): each for each in psutil.Process(run.process.pid).children()}
    return [found[rank] for rank in sorted(found)]


def test_a_rank_that_is_killed(tmp_path: Path, warm_policy: Path, whole: dict[int, dict[str, Any]]) -> None:
    chosen, broken, arguments = random.Random(SEED), tmp_path / "run", (*FINE, f"model.path={warm_policy}")
    for _ in range(ROUNDS):
        with running(command(broken, *arguments, ranks=2), tmp_path / "log") as run:
            before = rl_step(broken)
            run.until(lambda before=before: rl_step(broken) > before, 120)
            victim, others = ranks_of(run)[:: chosen.choice([1, -1])]
            victim.kill()
            took("rank", run.ended(MOST_SECONDS))
            assert run.process.returncode != 0
            assert not others.is_running()
    start(broken, *arguments, ranks=2)
    same(results(broken, 2), whole[2])


def test_a_stop_in_the_middle_of_a_save(tmp_path: Path, warm_policy: Path, whole: dict[int, dict[str, Any]]) -> None:
    broken, arguments = tmp_path / "run", (*FINE, f"model.path={warm_policy}")
    for step in range(1, ROUNDS + 1):
        with running(command(broken, *arguments), tmp_path / "log", INTERRUPT=f"term-in-save:{step}") as run:
            run.until(lambda step=step: f"told to stop in the save of step {step}" in run.output, 120)
            took("stop in a save", run.ended(MOST_SECONDS))
            assert run.process.returncode == REQUEUE
        assert Checkpoints(broken / "checkpoints" / "rl").newest() == broken / "checkpoints" / "rl" / f"step_{step}"
    start(broken, *arguments)
    same(results(broken, 1), whole[1])


def test_the_newest_checkpoint_is_cut_off(tmp_path: Path, warm_policy: Path, whole: dict[int, dict[str, Any]]) -> None:
    broken, arguments = tmp_path / "run", (*FINE, f"model.path={warm_policy}")
    start(broken, *arguments, interrupt="between-epochs:3")
    for round_ in range(ROUNDS):
        newest = Checkpoints(broken / "checkpoints" / "rl").newest()
        assert newest is not None
        victim = ("model.safetensors", "optimizer.pt", "rng_state.pth", "manifest.json", "trainer_state.json")[round_]
        os.truncate(newest / victim, (newest / victim).stat().st_size // 2)
        with running(command(broken, *arguments), tmp_path / "log", INTERRUPT=f"between-epochs:{4 + round_}") as run:
            took("newest checkpoint cut off", run.until(lambda n=newest: f"{n}" in run.output, 120))
            assert run.ended(120) >= 0 and run.process.returncode == REQUEUE
            assert "going back to the one before it" in run.output
    start(broken, *arguments)
    same(results(broken, 1), whole[1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk to fill can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path, block: int) -> None:
    """Leaves less than `block` bytes on the disk."""
    with file.open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(block)) == block:
            pass


def test_a_disk_that_fills_up(
    tmp_path: Path, small_disk: Path, warm_policy: Path, whole: dict[int, dict[str, Any]]
) -> None:
    broken, arguments, chosen = small_disk / "run", (*FINE, f"model.path={warm_policy}"), random.Random(SEED)
    for _ in range(ROUNDS):
        with running(command(broken, *arguments), tmp_path / "log") as run:
            before, told = rl_step(broken), run.output
            run.until(lambda before=before: rl_step(broken) > before, 120)
            fill(small_disk / "filler", chosen.choice([512, 4096, 65536]))
            took("disk full", run.ended(MOST_SECONDS))
            lines = [line for line in run.output[len(told) :].splitlines() if line.startswith("error: ")]
            assert run.process.returncode == 2 and len(lines) == 1, run.output[-2000:]
            assert "free some space and start" in lines[0]
            assert "Traceback" not in run.output
        (small_disk / "filler").unlink()
    start(broken, *arguments)
    same(results(broken, 1), whole[1])


def test_a_verifier_that_is_killed(tmp_path: Path) -> None:
    problems, worked = tmp_path / "train.jsonl", tmp_path / "worked.jsonl"
    texts = [(f"{a}{b}{c}=", f"{c}") for a in "abc" for b in range(1, 9) for c in range(1, 9)]
    problems.write_text("".join(json.dumps({"problem": text, "answer": answer}) + "\n" for text, answer in texts))
    rows = [{"problem": text, "reasoning": [text], "answer": answer} for text, answer in texts]
    worked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("data=jsonl", f"data.options.path={problems}", f"data.options.demonstrations={worked}")
    own = [each for each in MODEL if not each.startswith("data.")]
    rl = ("algorithm.steps=12", "algorithm.prompts_per_step=8", "algorithm.group_size=4", "data.train_problems=24")
    sft = ("sft=warm_start", "sft.steps=60", "sft.problems_per_step=8", "sft.parallel_share=0.0", "eval.problems=4")
    arguments = (*own, *rl, *sft, *data, "algorithm.learning_rate=1e-3", "reward=outcome")
    start(tmp_path / "whole", *arguments)
    wanted = results(tmp_path / "whole", 1)
    assert len({row["reward/total"] for row in wanted["curve"] if row["stage"] == "rl"}) > 3
    broken = tmp_path / "run"
    with running(command(broken, *arguments), tmp_path / "log") as run:
        for _ in range(ROUNDS):
            before = rl_step(broken)
            run.until(lambda before=before: rl_step(broken) > before, 120)
            (child,) = [each for each in run.tree() if "math_worker.py" in " ".join(each.cmdline())]
            child.kill()
            took("verifier", run.until(lambda before=before: rl_step(broken) > before + 1, 60))
        run.ended(120)
        assert run.process.returncode == 0, run.output[-2000:]
    same(results(broken, 1), wanted)
