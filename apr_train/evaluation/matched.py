"""Rows compared at the same cost: accuracy within one budget of tokens in all, and within one critical path."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apr_train.evaluation.metrics import Samples, accuracy_within, by_problem, mean, quantile


@dataclass(frozen=True, slots=True)
class Matched:
    """`total`: the tokens that 9 in 10 samples of `dearest` need at most, the row of the largest mean L_total.
    `critical`: the same of L_critical and `reference`. `rows`: of each row what `accuracy_within` finds, by axis.

    >>> matched({"parallel": samples, "no_forks": others}).rows["no_forks"]["total"]["accuracy"]
    0.875
    """

    total: float
    dearest: str
    critical: float
    reference: str
    rows: dict[str, dict[str, dict[str, Any]]]


def matched(rows: Mapping[str, Samples]) -> Matched:
    """What each row answers for as many tokens a problem as the dearest row takes, by voting where it has more samples
    than one; and within as long a critical path as the first row takes. Raises ValueError without samples.

    90th percentiles, not means: a budget of the mean would cut off half of the row that it is taken from. On the
    critical path every row has as many votes of a problem as the row with the fewest samples."""
    totals = {name: mean(sample.l_total for sample in samples) or 0.0 for name, samples in rows.items() if samples}
    if not totals:
        raise ValueError("rows without samples cannot be matched")
    dearest, reference = max(totals, key=lambda name: totals[name]), next(iter(totals))
    total = quantile([sample.l_total for sample in rows[dearest]], 0.9) or 0
    critical = quantile([sample.l_critical for sample in rows[reference]], 0.9) or 0
    budgets = {"total": total, "critical": critical}
    votes = min(len(own) for samples in rows.values() for own in by_problem(samples).values())
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, samples in rows.items():
        few = [sample for sample in samples if sample.number < votes]
        taken = {"total": samples, "critical": few}
        found[name] = {axis: accuracy_within(taken[axis], axis, budget) for axis, budget in budgets.items()}
    return Matched(total, dearest, critical, reference, found)
