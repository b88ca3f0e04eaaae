"""The whole story on a laptop: our policy and the sequential baseline, trained side by side, and a table of both.

python scripts/quickstart.py [--seed 0] [overrides for both runs, e.g. algorithm.steps=10]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from apr_train.evaluate import read_records, speedups
from apr_train.plot import plot_runs

ROOT = Path(__file__).resolve().parent.parent
RUNS = {"ours": "quickstart", "sequential_baseline": "sequential_baseline"}
"""Folder of a run -> its experiment."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("outputs/quickstart"))
    arguments, overrides = parser.parse_known_args()
    started = time.perf_counter()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not train_both(folder, arguments.seed, overrides):
        return 1
    summary = merge(folder, arguments.seed, round(time.perf_counter() - started, 1))
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    runs = {"adaptive (ours)": folder / "ours", "sequential baseline": folder / "sequential_baseline"}
    plot_runs(runs, folder / "curves.png", f"quickstart, seed {arguments.seed}")
    show(summary, folder)
    print(json.dumps(summary))
    return 0


def train_both(folder: Path, seed: int, overrides: list[str]) -> bool:
    """Runs both experiments at once, one core each; the baseline's output goes to a log file."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    children: dict[str, subprocess.Popen[bytes]] = {}
    for name, experiment in RUNS.items():
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), f"experiment={experiment}", f"seed={seed}"]
        command += [f"name={name}", f"output_dir={folder / name}", *overrides]
        log = None if name == "ours" else (folder / f"{name}.log").open("wb")
        children[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        failed = [name for name, child in children.items() if child.wait() != 0]
    finally:
        for child in children.values():
            child.kill()
    for name in failed:
        where = "see above" if name == "ours" else f"see {folder / name}.log"
        print(f"the run {name!r} failed: {where}", file=sys.stderr)
    return not failed


def merge(folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """One summary of both runs. The speed-up compares the same held-out problems after RL."""
    ours, baseline = (json.loads((folder / name / "summary.json").read_text()) for name in RUNS)
    records = {name: read_records(folder / name / "rl" / "heldout.jsonl") for name in RUNS}
    return {
        "sft": ours["sft"],
        "rl": ours["rl"],
        "sequential_baseline": baseline["rl"],
        "sequential_baseline_sft": baseline["sft"],
        **speedups(records["sequential_baseline"], records["ours"]),
        "critical_path_sft_over_rl": round(ours["sft"]["l_critical_mean"] / ours["rl"]["l_critical_mean"], 4),
        "gap_logprob_mean_abs": ours["gap_logprob_mean_abs"],
        "wall_seconds": seconds,
        "seed": seed,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "deepspeed")},
    }


def show(summary: dict[str, Any], folder: Path) -> None:
    """The result table, at most 80 columns wide."""
    table = Table(title=f"held-out problems: {summary['rl']['problems']}, temperature 1, seed {summary['seed']}")
    for column in ("policy", "parts", "accuracy", "L_critical", "L_total", "trigger rate"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for label, key in (("SFT", "sft"), ("RL (ours)", "rl"), ("sequential RL", "sequential_baseline")):
        rows = {"all": summary[key], **summary[key]["by_parts"]}
        for parts, row in rows.items():
            figures = (f"{row['accuracy']:.3f}", f"{row['l_critical_mean']:.1f}", f"{row['l_total_mean']:.1f}")
            table.add_row(label if parts == "all" else "", parts, *figures, f"{row['trigger_rate']:.2f}")
        table.add_section()
    console = Console(width=80)
    console.print(table)
    low, high = summary["speedup_ratio_of_means_ci95"]
    console.print(
        f"critical path, sequential over ours: {summary['speedup_ratio_of_means']:.2f}x [{low:.2f}, {high:.2f}]"
    )
    low, high = summary["speedup_mean_of_ratios_ci95"]
    console.print(
        f"mean of per-problem ratios:          {summary['speedup_mean_of_ratios']:.2f}x [{low:.2f}, {high:.2f}]"
    )
    console.print(
        f"sampler/trainer gap {summary['gap_logprob_mean_abs']:.1e} nats, {summary['wall_seconds']:.0f} s in all"
    )
    console.print(f"curves: {folder / 'curves.png'}   everything: {folder / 'summary.json'}")


if __name__ == "__main__":
    sys.exit(main())
