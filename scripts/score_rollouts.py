"""Scores recorded rollouts under any rewards: design a reward on what was sampled before a GPU is spent on it.

python scripts/score_rollouts.py outputs/run/rollouts-rank0.jsonl reward=threadweaver_paper,robust [--plot rewards.png]

With one reward, overrides may follow, e.g. reward=robust reward.terms.latency.weight=0.3. `--step` says at which step
schedules are read (default: the step each rollout was recorded at). `--write-baseline` stores the mean critical path of
each problem's right answers, for a latency term with `reference: stored`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from apr_train.compose import load
from apr_train.stored import check_writable, read_groups, write_baseline
from rewards.build import make_reward
from rewards.reward import Reward
from rewards.scored import Group
from rollout.errors import UserError
from rollout.shown import one_line

Columns = dict[str, np.ndarray]
"""A reward's total and its terms: arrays over all rollouts, in one order for all rewards."""


PICTURES = (".png", ".pdf", ".svg")


class ScoreError(UserError, ValueError):
    """The command line cannot be followed."""


def main(argv: Sequence[str] | None = None) -> int:
    """0: scored. 2: something the user can mend, told in one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", help="rollouts-rank*.jsonl, then reward=name,name and overrides")
    parser.add_argument("--step", type=int, help="read schedules at this step")
    parser.add_argument("--plot", type=Path, default=Path("rewards.png"))
    parser.add_argument("--write-baseline", type=Path)
    arguments = parser.parse_args(argv)
    try:
        check_writable(arguments.plot, arguments.write_baseline)
        if arguments.plot.suffix not in PICTURES:
            raise ScoreError(f"--plot {arguments.plot} ends in none of {', '.join(PICTURES)}")
        overrides = [word for word in arguments.files if "=" in word]
        rewards = chosen(overrides) if overrides or not arguments.write_baseline else {}
        groups = read_groups([Path(word) for word in arguments.files if "=" not in word])
        if arguments.write_baseline:
            count = write_baseline([group for _, group in groups], arguments.write_baseline)
            print(f"{arguments.write_baseline}: baselines of {count} problems")
        if rewards:
            report(rewards, groups, arguments.step, arguments.plot)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def chosen(overrides: Sequence[str]) -> dict[str, Reward]:
    """The rewards of `reward=a,b` and, for a single one, its overrides."""
    names = [name for word in overrides if word.startswith("reward=") for name in word[len("reward=") :].split(",")]
    others = [word for word in overrides if not word.startswith("reward=")]
    if not names:
        raise ScoreError("name the rewards to score under, e.g. reward=threadweaver_paper,robust")
    if others and len(names) > 1:
        raise ScoreError(f"{others[0]} could mean any of {', '.join(names)}: give overrides with one reward")
    return {name: make_reward(load([f"reward={name}", *others]).reward.terms) for name in names}


def report(rewards: dict[str, Reward], groups: list[tuple[int, Group]], step: int | None, picture: Path) -> None:
    """The tables, the picture, and the same as JSON on the last line."""
    members = [member for _, group in groups for member in group]
    facts = {
        "correct": np.array([member.correct for member in members], dtype=float),
        "L_critical": np.array([member.lengths.l_critical for member in members], dtype=float),
    }
    values, saturated = {}, {}
    for name, reward in rewards.items():
        values[name], saturated[name] = score(reward, groups, step)
    totals = {name: columns["total"] for name, columns in values.items()}
    ranks = rank_correlations(totals | facts)
    console = Console(width=80, markup=False, highlight=False)
    alone = sum(len(group.members) == 1 for _, group in groups)
    console.print(
        f"{len(members)} rollouts in {len(groups)} groups, {facts['correct'].mean():.1%} right"
        + (f"; {alone} groups of one, where group-relative terms are 0" if alone else "")
    )
    console.print(value_table(values, saturated))
    console.print(rank_table(ranks, list(totals)))
    draw(values, saturated, ranks, picture)
    console.print(f"picture: {picture}")
    print(json.dumps({"terms": summary(values, saturated), "rank_correlation": ranks, "rollouts": len(members)}))


def score(reward: Reward, groups: list[tuple[int, Group]], step: int | None) -> tuple[Columns, dict[str, float]]:
    """Values of every rollout, and each term's share of saturated samples where its gate was open."""
    names = ["total", *reward.terms]
    rows: list[list[float]] = []
    open_, bound = dict.fromkeys(reward.terms, 0), dict.fromkeys(reward.terms, 0)
    for recorded, group in groups:
        parts = reward.parts(group, step or recorded)
        for name, column in parts.items():
            open_[name] += sum(part.gate for part in column)
            bound[name] += sum(part.saturated for part in column)
        for i in range(len(group.members)):
            own = [column[i].value for column in parts.values()]
            rows.append([sum(own), *own])
    table = np.array(rows, dtype=float)
    return {name: table[:, i] for i, name in enumerate(names)}, {n: bound[n] / max(open_[n], 1) for n in bound}


def rank_correlations(columns: Columns) -> dict[str, dict[str, float | None]]:
    """Spearman's rho of each pair, ties sharing their mean rank; None where one of the two never varies.

    >>> rank_correlations({"a": np.array([1.0, 2.0, 2.0]), "b": np.array([5.0, 7.0, 7.0])})["a"]["b"]
    1.0
    """
    judged = ~np.isnan(np.array(list(columns.values()))).any(0)
    ranked = {name: mean_ranks(values[judged]) for name, values in columns.items()}
    found: dict[str, dict[str, float | None]] = {}
    for one, x in ranked.items():
        found[one] = {}
        for other, y in ranked.items():
            varies = len(x) > 1 and x.std() > 0 and y.std() > 0
            found[one][other] = round(float(np.corrcoef(x, y)[0, 1]), 4) if varies else None
    return found


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values (to 1e-9) share the mean of theirs."""
    _, where, counts = np.unique(values.round(9), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts + 1) / 2.0)[where]


def summary(values: dict[str, Columns], saturated: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Per reward and term: mean, sd, 5th, 50th and 95th percentile, share of saturated samples."""
    found: dict[str, dict[str, Any]] = {}
    for reward, columns in values.items():
        found[reward] = {}
        for name, column in columns.items():
            judged = column[~np.isnan(column)]
            figures = [judged.mean(), judged.std(), *np.quantile(judged, [0.05, 0.5, 0.95])] if len(judged) else []
            row = dict(zip(("mean", "sd", "p5", "p50", "p95"), (round(float(f), 6) for f in figures), strict=False))
            found[reward][name] = row | {"saturated": round(saturated[reward].get(name, 0.0), 4)}
    return found


def value_table(values: dict[str, Columns], saturated: dict[str, dict[str, float]]) -> Table:
    table = Table(title="what each term pays", width=80)
    table.add_column("reward and its terms", overflow="fold")
    for column in ("mean", "sd", "p5", "p50", "p95", "saturated"):
        table.add_column(column, justify="right", no_wrap=True)
    for reward, rows in summary(values, saturated).items():
        for name, row in rows.items():
            keys = ("mean", "sd", "p5", "p50", "p95")
            figures = [f"{row[key] + 0.0:.3f}".replace("-0.000", "0.000") if key in row else "-" for key in keys]
            share = "" if name == "total" else f"{row['saturated']:.0%}"
            table.add_row(reward if name == "total" else f"  {name}", *figures, share)
        table.add_section()
    return table


def rank_table(ranks: dict[str, dict[str, float | None]], rewards: list[str]) -> Table:
    """Rows: rewards; columns: the facts, then the rewards by number, so that many fit."""
    table = Table(title="rank correlation over all rollouts (Spearman)", width=80)
    table.add_column("reward", overflow="fold")
    facts = [name for name in ranks if name not in rewards]
    for column in (*facts, *(str(number) for number in range(1, len(rewards) + 1))):
        table.add_column(column, justify="right")
    for number, name in enumerate(rewards, start=1):
        row = [ranks[name][other] for other in (*facts, *rewards)]
        table.add_row(f"{number} {name}", *("-" if value is None else f"{value:.2f}" for value in row))
    return table


def draw(
    values: dict[str, Columns],
    saturated: dict[str, dict[str, float]],
    ranks: dict[str, dict[str, float | None]],
    picture: Path,
) -> None:
    """Left: the distribution of every term and total. Middle: saturation. Right: rank correlation."""
    labels = [f"{reward}: {name}" for reward, columns in values.items() for name in columns]
    columns = [column[~np.isnan(column)] for each in values.values() for column in each.values()]
    shares = [saturated[reward].get(name, 0.0) for reward, each in values.items() for name in each]
    height = max(3.5, 0.34 * len(labels) + 1.2)
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(14, height), layout="constrained", width_ratios=(3, 1.2, 2)
    )
    places = np.arange(len(labels))[::-1]
    left.boxplot(columns, positions=places, orientation="horizontal", whis=(5, 95), showfliers=False, widths=0.6)
    left.scatter([column.mean() for column in columns], places, color="#b5532a", s=14, zorder=3, label="mean")
    left.set_yticks(places, labels, fontsize=8)
    left.set_title("value: quartiles, whiskers at 5% and 95%", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    middle.barh(places, shares, color="#1b6ca8", height=0.6)
    middle.set_yticks([])
    middle.set_xlim(0, 1)
    middle.set_ylim(left.get_ylim())
    middle.set_title("saturated share", fontsize=10)
    names = list(ranks)
    matrix = np.array([[ranks[a][b] if ranks[a][b] is not None else np.nan for b in names] for a in names], dtype=float)
    right.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu")
    right.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    right.set_yticks(range(len(names)), names, fontsize=8)
    for (i, j), value in np.ndenumerate(matrix):
        text = "-" if np.isnan(value) else f"{value:.2f}"
        right.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.6 else "black")
    right.set_title("rank correlation", fontsize=10)
    for axis in (left, middle):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.25)
    figure.savefig(picture, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
