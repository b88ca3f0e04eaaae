"""Draws a run's curves: accuracy and critical path over RL steps, one line per run."""

import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PANELS = {
    "reward/accuracy": "accuracy",
    "tree/l_critical": "critical path (tokens)",
    "tree/trigger_rate": "trigger rate",
}
COLOURS = ("#1b6ca8", "#b5532a", "#4c8c4a", "#7a5195")


def plot_runs(runs: Mapping[str, Path], picture: Path, title: str) -> None:
    """Writes a PNG with one panel per figure of PANELS. `runs` maps a label to a folder that holds metrics.jsonl."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.4), layout="constrained")
    for colour, (label, folder) in zip(COLOURS, runs.items(), strict=False):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["stage"] == "rl"]
        for axis, name in zip(axes, PANELS, strict=True):
            axis.plot(
                [row["step"] for row in rows], [row[name] for row in rows], color=colour, label=label, linewidth=1.8
            )
    for axis, what in zip(axes, PANELS.values(), strict=True):
        axis.set_title(what, fontsize=10)
        axis.set_xlabel("RL step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False, fontsize=9, loc="lower right")
    figure.suptitle(title, fontsize=11)
    figure.savefig(picture, dpi=130)
    plt.close(figure)
