"""Held-out evaluation: one record per problem, a summary with its split by parts, and speed-ups with intervals."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apr_train.checkpoint import replace_text
from apr_train.rollouts import Rollouts
from apr_train.tasks.base import Problem

BOOTSTRAP = 2000


@dataclass(frozen=True, slots=True)
class Record:
    """One held-out problem's one sample. `correct` is None when the verifier itself failed."""

    problem_id: str
    parts: int | None
    correct: bool | None
    outcome: str
    l_critical: int
    l_total: int
    blocks: int
    threads: int


def evaluate(
    rollouts: Rollouts, problems: Sequence[Problem], temperature: float, seed: int, first: int = 0
) -> list[Record]:
    """One sample per problem, in order; `first` is the number of the first problem among all ranks' problems."""
    scored = rollouts.collect(problems, temperature=temperature, seed=seed, first=first)
    return [
        Record(
            problem.id,
            problem.parts,
            each.verdict == "correct" if each.judged else None,
            each.trajectory.outcome,
            each.lengths.l_critical,
            each.lengths.l_total,
            each.lengths.blocks,
            each.lengths.threads,
        )
        for problem, each in zip(problems, scored, strict=True)
    ]


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """accuracy (of the judged), means of L_critical, L_total and threads, trigger rate; and the same `by_parts`."""
    summary: dict[str, Any] = dict(_means(records))
    parts = sorted({r.parts for r in records if r.parts is not None})
    summary["by_parts"] = {str(p): _means([r for r in records if r.parts == p]) for p in parts}
    return summary


def _means(records: Sequence[Record]) -> dict[str, float | int | None]:
    judged = [r.correct for r in records if r.correct is not None]
    low, high = wilson(sum(judged), len(judged))
    return {
        "problems": len(records),
        "not_judged": len(records) - len(judged),
        "accuracy": _mean([float(c) for c in judged]),
        "accuracy_low": low,
        "accuracy_high": high,
        "l_critical_mean": _mean([r.l_critical for r in records]),
        "l_total_mean": _mean([r.l_total for r in records]),
        "threads_mean": _mean([r.threads for r in records]),
        "trigger_rate": _mean([float(r.blocks > 0) for r in records]),
        "answered": _mean([float(r.outcome == "answered") for r in records]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson 1927). wilson(9, 10) = (0.596, 0.982); (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    share, shrink = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / shrink
    return round(centre - half, 4), round(centre + half, 4)


def speedups(baseline: Sequence[Record], ours: Sequence[Record], seed: int = 0) -> dict[str, float | list[float]]:
    """L_critical(baseline) / L_critical(ours) over the same problems: ratio of means, and mean of per-problem ratios.

    Intervals are 95% bootstrap percentiles over problems. Baseline 100, 300 and ours 50, 200: ratio of means
    400 / 250 = 1.6, mean of ratios (2 + 1.5) / 2 = 1.75. Raises ValueError unless both hold the same problems in order.
    """
    if [r.problem_id for r in baseline] != [r.problem_id for r in ours]:
        raise ValueError("a speed-up compares the same problems in the same order: evaluate both runs on one data.seed")
    slow = np.array([r.l_critical for r in baseline], dtype=float)
    fast = np.array([r.l_critical for r in ours], dtype=float)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(slow), size=(BOOTSTRAP, len(slow)))
    ratios = slow / fast
    return {
        "speedup_ratio_of_means": round(float(slow.mean() / fast.mean()), 4),
        "speedup_ratio_of_means_ci95": _interval(slow[draws].mean(1) / fast[draws].mean(1)),
        "speedup_mean_of_ratios": round(float(ratios.mean()), 4),
        "speedup_mean_of_ratios_ci95": _interval(ratios[draws].mean(1)),
    }


def _interval(samples: np.ndarray) -> list[float]:
    return [round(float(q), 4) for q in np.quantile(samples, [0.025, 0.975])]


def write_records(path: Path, records: Sequence[Record]) -> None:
    """JSON lines, one per record; whole or not at all."""
    replace_text(path, "".join(json.dumps(asdict(record)) + "\n" for record in records))


def read_records(path: Path) -> list[Record]:
    """What `write_records` wrote."""
    return [Record(**json.loads(line)) for line in path.read_text().splitlines()]
