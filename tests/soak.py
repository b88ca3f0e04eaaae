"""A long run of the quick start on two ranks, killed now and then: does it keep memory or file handles?

python tests/soak.py [--steps 200] [--kills 6] [--seed 0] [overrides]

Kills one rank at random steps and starts the same command again. Samples what each rank holds while it trains; prints
the slope over steps, as JSON on the last line. Ends with 1 where a step is missing, or where memory or handles grow.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from conftest import ROOT
from real_runs import environment, logged

RANKS = 2
SETTINGS = (
    *("experiment=quickstart", "logger=disabled", "logger.progress=false", "checkpoint.every=5"),
    *("algorithm.prompts_per_step=8", "sft.steps=150", "eval.problems=16"),
    "rollout.kv_cache_gib=0.1",  # vLLM touches its cache page by page: with more the warm-up outlasts the run
)
WARM = 10
"""Steps after each start that do not count: caches fill, allocators grow."""
MOST_MIB, MOST_HANDLES = 0.2, 0.02
"""A step may add so much: 200 steps then hold 40 MiB and 4 handles more."""
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc's allocator at its first threshold. Left alone it raises it, keeps what large tensors leave free, and the
resident size grows although nothing more is in use (docs/resume.md)."""


@dataclass
class Watched:
    """What the ranks of one start held: rank -> rows of (step, MiB resident, open handles)."""

    rows: dict[int, list[tuple[int, float, int]]] = field(default_factory=dict[int, list[tuple[int, float, int]]])

    def look(self, agent: psutil.Process, step: int) -> dict[int, psutil.Process]:
        """Samples the ranks below a torchrun."""
        found: dict[int, psutil.Process] = {}
        with suppress(psutil.NoSuchProcess):  # they end while we look
            for child in agent.children():
                if "LOCAL_RANK" in child.environ():
                    rank = int(child.environ()["LOCAL_RANK"])
                    mib = child.memory_info().rss / 2**20
                    self.rows.setdefault(rank, []).append((step, mib, child.num_fds()))
                    found[rank] = child
        return found

    def late(self) -> list[np.ndarray]:
        """Of each rank the rows after the warm-up."""
        found: list[np.ndarray] = []
        for rows in self.rows.values():
            first = next((step for step, *_ in rows if step), 0)
            kept = np.array([row for row in rows if row[0] >= first + WARM], dtype=float)
            if len(kept):
                found.append(kept)
        return found


def slope(groups: list[np.ndarray]) -> tuple[float, float]:
    """(MiB, handles) a step: the median over all pairs of samples of one rank in one start (Theil-Sen), since what a
    step holds for a moment would tilt a line by least squares; NaN without pairs."""
    found = [np.empty((0, 2))]
    for rows in groups:
        first, second = np.triu_indices(len(rows), 1)
        steps, more = rows[second, :1] - rows[first, :1], rows[second, 1:] - rows[first, 1:]
        apart = steps[:, 0] != 0
        found.append(more[apart] / steps[apart])
    mib, handles = np.median(np.concatenate(found), axis=0) if sum(map(len, found)) else (np.nan, np.nan)
    return float(mib), float(handles)


def steps_of(folder: Path) -> list[int]:
    """The RL steps that are logged."""
    return [row["step"] for row in logged(folder) if row["stage"] == "rl"]


def one_start(command: list[str], folder: Path, kill_at: int | None, watched: Watched, log: Any) -> int:
    """Runs until the end, or until step `kill_at` and a SIGKILL to one rank. Its exit code."""
    agent = subprocess.Popen(command, env=environment(**GIVES_BACK), stdout=log, stderr=log)
    while agent.poll() is None:
        time.sleep(1)
        step = max(steps_of(folder), default=0)
        ranks = watched.look(psutil.Process(agent.pid), step)
        if kill_at is not None and step >= kill_at and ranks:
            ranks[random.randrange(RANKS)].send_signal(signal.SIGKILL)
            kill_at = None
            with suppress(subprocess.TimeoutExpired):  # what hangs is told below, and ended
                agent.wait(60)
            if agent.poll() is None:
                for each in psutil.Process(agent.pid).children(recursive=True):
                    each.kill()
                agent.kill()
    return agent.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments, overrides = parser.parse_known_args()
    random.seed(arguments.seed)
    kills = sorted(random.sample(range(2, arguments.steps - 1), arguments.kills))
    started = time.perf_counter()
    starts: list[Watched] = []
    with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "log").open("w+") as log:
        folder = Path(scratch) / "run"
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
        command += [str(ROOT / "scripts/train.py"), *SETTINGS, f"output_dir={folder}", f"seed={arguments.seed}"]
        command += [f"algorithm.steps={arguments.steps}", *overrides]
        for kill_at in (*kills, None):
            starts.append(Watched())
            code = one_start(command, folder, kill_at, starts[-1], log)
            print(f"{time.perf_counter() - started:.0f} s: step {max(steps_of(folder), default=0)}, exit {code}")
        log.seek(0)
        steps, told = steps_of(folder), log.read()
    late = [rows for start in starts for rows in start.late()]
    mib, handles = slope(late)
    whole = code == 0 and steps == list(range(1, arguments.steps + 1))
    if not whole:
        print(told[-3000:])
    rows = [row for start in starts for rows in start.rows.values() for row in rows]
    result = {
        "steps": len(steps),
        "kills": kills,
        "whole": whole,
        "samples": sum(map(len, late)),
        "mib_per_step": mib,
        "handles_per_step": handles,
        "mib_most": max(row[1] for row in rows),
        "handles_most": max(row[2] for row in rows),
        "seconds": round(time.perf_counter() - started),
        "seed": arguments.seed,
    }
    print(json.dumps(result))
    return 0 if whole and mib <= MOST_MIB and handles <= MOST_HANDLES else 1


if __name__ == "__main__":
    sys.exit(main())
