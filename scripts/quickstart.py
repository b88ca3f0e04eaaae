"""The whole story on a laptop: our policy and the sequential baseline, trained side by side, and a table of both.

python scripts/quickstart.py [--seed 0] [overrides for both runs, e.g. algorithm.steps=10]
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from apr_train.compose import load
from apr_train.config import ConfigError
from apr_train.evaluation.metrics import speedups
from apr_train.evaluation.samples import read_samples
from apr_train.plot import plot_runs
from rollout.shown import one_line

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR", "WANDB_SILENT": "true"}
"""Keeps banners of libraries out from between the progress lines."""
RUNS = {"ours": "quickstart", "sequential_baseline": "sequential_baseline"}
"""Folder of a run -> its experiment."""
RESULTS = ("summary.json", "metrics.jsonl", "rl/heldout.jsonl")
"""What is read of a run; the comparison writes summary.json and curves.png beside the two."""

Child = subprocess.Popen[bytes]


def main(argv: Sequence[str] | None = None) -> int:
    """0: trained and compared. 1: a run failed. 2: the overrides leave nothing to compare. 130: interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("outputs/quickstart"))
    arguments, overrides = parser.parse_known_args(argv)
    started = time.perf_counter()
    folder: Path = arguments.folder
    try:
        check_comparable(folder, arguments.seed, overrides)
    except ConfigError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    try:
        if not train_both(folder, arguments.seed, overrides):
            return 1
    except KeyboardInterrupt:
        print(f"interrupted: both runs were stopped, {folder} holds no comparison", file=sys.stderr)
        return 130
    summary = merge(folder, arguments.seed, round(time.perf_counter() - started, 1))
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    runs = {"adaptive (ours)": folder / "ours", "sequential baseline": folder / "sequential_baseline"}
    plot_runs(runs, folder / "curves.png", f"quickstart, seed {arguments.seed}")
    show(summary, folder)
    print(json.dumps(summary))
    return 0


def settings(folder: Path, name: str, seed: int, overrides: Sequence[str]) -> list[str]:
    """The command line of one of the two runs, as overrides."""
    own = [f"experiment={RUNS[name]}", f"seed={seed}", f"name={name}", f"output_dir={folder / name}"]
    return [*own, "resume=never", *overrides]


def check_comparable(folder: Path, seed: int, overrides: Sequence[str]) -> None:
    """Raises ConfigError for overrides that no run could use, or that leave nothing to compare."""
    configs = {name: load(settings(folder, name, seed, overrides)) for name in RUNS}
    ours, baseline = configs.values()
    for key, value in (
        ("eval.problems", ours.eval.problems),
        ("sft.steps", ours.sft.steps),
        ("algorithm.steps", ours.algorithm.steps),
    ):
        if not value:
            raise ConfigError(f"{key}=0 leaves nothing to compare: the table shows held-out problems after SFT and RL")
    if ours.dry_run:
        raise ConfigError("dry_run=true trains nothing: use scripts/train.py experiment=quickstart dry_run=true")
    if ours.dialect == baseline.dialect:
        raise ConfigError("experiment and dialect cannot be given to both runs: the dialect is what is compared")
    if ours.sft.parallel_share == baseline.sft.parallel_share:
        raise ConfigError("sft.parallel_share cannot be given to both runs: the baseline cannot show parallel blocks")
    for name, config in configs.items():
        if (config.name, config.output_dir) != (name, str(folder / name)):
            raise ConfigError("name and output_dir are each run's own: use --folder")


def clear(folder: Path) -> None:
    """Removes the results of an earlier comparison, so that a failed one cannot pass for it. Weights stay."""
    read = [folder / name / result for name in RUNS for result in RESULTS]
    for path in (folder / "summary.json", folder / "curves.png", *read):
        path.unlink(missing_ok=True)


def train_both(folder: Path, seed: int, overrides: Sequence[str]) -> bool:
    """Runs both experiments at once, one core each; True when both end well. The baseline writes to a log file."""
    environment = os.environ | QUIET | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    children: dict[str, Child] = {}
    with (folder / "sequential_baseline.log").open("wb") as log:
        try:
            for name in RUNS:
                command = [sys.executable, str(ROOT / "scripts" / "train.py")]
                command += settings(folder, name, seed, overrides)
                out = None if name == "ours" else log
                # A session of its own: Ctrl-C reaches this process alone, which then ends the run and its helpers.
                child = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
                children[name] = child
            return watch(children, Path(log.name))
        finally:
            stop(children.values())


def watch(children: Mapping[str, Child], log: Path) -> bool:
    """Waits until both have ended well (True), or one has not: says where to look and does not wait for the other."""
    while True:
        codes = {name: child.poll() for name, child in children.items()}
        if failed := {name: code for name, code in codes.items() if code}:
            for name, code in failed.items():
                where = "see above" if name == "ours" else f"see {log}"
                print(f"the run {name!r} failed with exit code {code}: {where}", file=sys.stderr)
            return False
        if all(code == 0 for code in codes.values()):
            return True
        time.sleep(0.2)


def stop(children: Iterable[Child], patience: float = 5.0) -> None:
    """Ends the runs that still go on, with all their processes; kills what has not ended after `patience` seconds."""
    running = [child for child in children if child.poll() is None]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for child in running:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(child.pid, number)
        deadline = time.monotonic() + patience
        for child in running:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))


def merge(folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """One summary of both runs. The speed-up compares the same held-out problems after RL."""
    ours, baseline = (json.loads((folder / name / "summary.json").read_text()) for name in RUNS)
    records = {name: read_samples(folder / name / "rl" / "heldout.jsonl") for name in RUNS}
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
    console = Console(width=80, markup=False, highlight=False)
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
    console.print(f"curves:     {folder / 'curves.png'}")
    console.print(f"everything: {folder / 'summary.json'}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` and Ctrl-C end the same way
    sys.exit(main())
