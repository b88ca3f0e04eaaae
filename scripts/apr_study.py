"""APR on Countdown beside the sequential SoS+: SFT on solver traces, RL, and accuracy against what the search costs.

    python scripts/apr_study.py                       # both runs, then the curves
    python scripts/apr_study.py --evaluate            # the curves only, of runs that are there

APR is asked with every number of sub calls it may make, SoS+ by the majority (cons@n) and by the best (pass@n) of n
samples. A point's critical path is the mean longest chain of tokens (of n samples: the longest one), its total the mean
of all tokens. The same problems, verifier and temperature for all. The last line is JSON.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from transformers import AutoTokenizer

from apr_train.compose import load
from apr_train.config import Config
from apr_train.evaluation.statistics import wilson
from apr_train.rollouts import Rollouts, budget_of
from apr_train.sampler import make_sampler
from apr_train.tasks import make_task
from apr_train.weight_sync import saved_weights
from rewards.scored import Scored
from rollout.dialects import make_dialect
from rollout.orchestrator import mix
from rollout.search_trace import SURFACES, Surface, child_return
from rollout.tokens import Tokens

RUNS = {"apr": "apr_countdown", "sosp": "sosp_countdown"}
STAGES = ("sft", "rl")
SAMPLES = (1, 2, 4, 8)
COLOURS = {"apr": "#1b6ca8", "sosp": "#b5532a"}


Way = Callable[[Scored], str | None]
"""The way to the target that a trace restates at its end; None when it found none."""


@dataclass(frozen=True, slots=True)
class Point:
    """One way to spend: `how` is a number of sub calls, or cons@n, pass@n."""

    run: str
    stage: str
    how: str
    accuracy: float
    low: float
    high: float
    critical: float
    total: float
    children: float


def settings(folder: Path, run: str, overrides: Sequence[str]) -> list[str]:
    return [f"experiment={RUNS[run]}", f"name={RUNS[run]}", f"output_dir={folder / run}", *overrides]


def train(folder: Path, overrides: Sequence[str]) -> None:
    """Both runs side by side, one core each. Raises SystemExit when one fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
    children: dict[str, subprocess.Popen[bytes]] = {}
    for run in RUNS:
        command = [sys.executable, "scripts/train.py", *settings(folder, run, overrides)]
        with (folder / f"{run}.log").open("wb") as log:
            children[run] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    failed = [run for run, child in children.items() if child.wait()]
    if failed:
        raise SystemExit(f"the run {failed[0]!r} failed: see {folder / failed[0]}.log")


def collect(rollouts: Rollouts, config: Config, problems: int, seed: int, **options: Any) -> list[Scored]:
    """One sample for each held-out problem, under these task options."""
    task = make_task(config.data.task, config.data.options | options)
    held_out = task.problems("heldout", problems, config.data.seed)
    return rollouts.collect(held_out, temperature=config.eval.temperature, seed=seed)


def point(run: str, stage: str, how: str, scored: Sequence[Scored]) -> Point:
    right = sum(each.correct for each in scored)
    return Point(
        *(run, stage, how, right / len(scored), *wilson(right, len(scored))),
        critical=mean([each.lengths.l_critical for each in scored]),
        total=mean([each.lengths.l_total for each in scored]),
        children=mean([each.lengths.threads for each in scored]),
    )


def voted(run: str, stage: str, draws: Sequence[Sequence[Scored]], way: Way, seed: int) -> list[Point]:
    """cons@n and pass@n over `draws[n][problem]`. A vote is on the restated way to the target: traces that failed have
    none and are dropped, as in the paper; ties are drawn."""
    rng, points = random.Random(seed), list[Point]()
    for n in SAMPLES:
        columns = list(zip(*draws[:n], strict=True))
        critical = mean([max(each.lengths.l_critical for each in column) for column in columns])
        total = mean([sum(each.lengths.l_total for each in column) for column in columns])
        agreed = [chosen(column, way, rng) for column in columns]
        passed = [any(each.correct for each in column) for column in columns]
        for name, right in (("cons", sum(agreed)), ("pass", sum(passed))):
            share = right / len(columns)
            low, high = wilson(right, len(columns))
            points.append(Point(run, stage, f"{name}@{n}", share, low, high, critical, total, 0.0))
    return points


def chosen(column: Sequence[Scored], way: Way, rng: random.Random) -> bool:
    """Whether the way that most samples end with is correct."""
    ends = [(found, each.correct) for each in column if (found := way(each)) is not None]
    if not ends:
        return False
    votes = Counter(end for end, _ in ends)
    winner = rng.choice(sorted(end for end, count in votes.items() if count == max(votes.values())))
    return dict(ends)[winner]


def mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 2)


def measure_all(folder: Path, problems: int, overrides: Sequence[str]) -> list[Point]:
    """Every point of both runs and both stages."""
    points: list[Point] = []
    for run in RUNS:
        config = load(settings(folder, run, overrides))
        tokens = Tokens(AutoTokenizer.from_pretrained(folder / run / "start", trust_remote_code=False))
        dialect = make_dialect(config.dialect.name, tokens, config.dialect.join, config.dialect.options)
        surface = SURFACES[config.data.options["surface"]]
        sampler = make_sampler(config, folder / run / "start")
        task = make_task(config.data.task, config.data.options)
        rollouts = Rollouts(sampler, dialect, tokens, task.verifier, budget_of(config.rollout))
        for stage in STAGES:
            sampler.load_weights(saved_weights(folder / run / stage))
            if run == "apr":
                for calls in range(int(config.data.options["budget"]) + 1):
                    scored = collect(rollouts, config, problems, mix(config.seed, 7), budget=calls)
                    points.append(point(run, stage, str(calls), scored))
            else:
                draws = [collect(rollouts, config, problems, mix(config.seed, 7, n)) for n in range(max(SAMPLES))]

                def way(each: Scored, tokens: Tokens = tokens, surface: Surface = surface) -> str | None:
                    return child_return(tokens.decode(each.trajectory.root_ids()[:-1]), surface)

                points += voted(run, stage, draws, way, config.seed)
        sampler.close()
    return points


def plot(points: Sequence[Point], picture: Path) -> None:
    """Accuracy against the critical path, and against all tokens."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    series = [("apr", "", "APR, 0 to 5 sub calls", "o"), ("sosp", "cons", "SoS+ cons@n", "s")]
    series += [("sosp", "pass", "SoS+ pass@n", "^")]
    for run, kind, label, marker in series:
        for stage, style in zip(STAGES, ("--", "-"), strict=True):
            line = [p for p in points if (p.run, p.stage) == (run, stage) and p.how.startswith(kind)]
            for axis, cost in zip(axes, ("critical", "total"), strict=True):
                axis.plot(
                    [getattr(p, cost) for p in line],
                    [p.accuracy for p in line],
                    style,
                    marker=marker,
                    color=COLOURS[run],
                    alpha=0.45 if kind == "pass" else 1.0,
                    label=f"{label}, {stage.upper()}",
                    markersize=5,
                )
    for axis, cost in zip(axes, ("critical path (tokens)", "all tokens"), strict=True):
        axis.set_xlabel(cost)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(0, 1)
    axes[0].set_ylabel("accuracy, held-out problems")
    axes[1].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def table(points: Sequence[Point]) -> str:
    """Markdown."""
    lines = [
        "| run | stage | how | accuracy [95 %] | L_critical | L_total | children |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.run} | {p.stage} | {p.how} | {p.accuracy:.3f} [{p.low:.3f}, {p.high:.3f}] | {p.critical:.0f} | "
        f"{p.total:.0f} | {p.children:.1f} |"
        for p in points
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/apr_study"))
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--evaluate", action="store_true", help="do not train")
    arguments, overrides = parser.parse_known_args()
    started = time.perf_counter()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not arguments.evaluate:
        train(arguments.folder, overrides)
    points = measure_all(arguments.folder, arguments.problems, overrides)
    plot(points, arguments.folder / "apr_countdown.png")
    print(table(points))
    seconds = round(time.perf_counter() - started, 1)
    result = {"problems": arguments.problems, "seconds": seconds, "points": [asdict(p) for p in points]}
    (arguments.folder / "points.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
