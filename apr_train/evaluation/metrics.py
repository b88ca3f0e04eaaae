"""What is measured of samples: accuracy, votes, lengths, shape, diversity, and accuracy within budgets. Pure."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import Any

from apr_train.evaluation.samples import Sample
from apr_train.evaluation.statistics import bootstrap_ratio, wilson

SUBSETS = 64
"""Of how many random subsets a vote of k out of more samples is the mean."""
Samples = Sequence[Sample]


def by_problem(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """A problem's samples by their number; problems in the order of their first one."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.problem_id, []).append(sample)
    return {name: sorted(own, key=lambda sample: sample.number) for name, own in found.items()}


def summarise(samples: Samples) -> dict[str, Any]:
    """All figures of one strategy's samples, and the same by parts, source and level where problems have them."""
    found = figures(samples)
    splits: dict[str, Callable[[Sample], object]] = {
        "by_parts": lambda sample: sample.parts,
        "by_source": lambda sample: sample.source,
        "by_level": lambda sample: sample.level,
    }
    for name, key in splits.items():
        values = sorted({key(sample) for sample in samples} - {None}, key=lambda value: (str(type(value)), value))
        found[name] = {str(value): figures([s for s in samples if key(s) == value]) for value in values}
    return found


def figures(samples: Samples) -> dict[str, Any]:
    """Means over samples, rounded; None where there is nothing to average, as of the forks of a search, which are its
    client's. Shares are of samples, not of problems."""
    problems = by_problem(samples)
    judged = [sample.correct for sample in samples if sample.correct is not None]
    most = max((len(own) for own in problems.values()), default=0)
    shares = _accuracies(problems)
    low, high = wilson(sum(shares), len(shares))  # of several samples too: then it is rather too wide, never empty
    policy = [sample for sample in samples if not sample.searched]  # in a search it is the client that forks
    forked = [sample for sample in policy if sample.blocks]
    powers = [1 << bit for bit in range(most.bit_length()) if 1 << bit <= most]
    return {
        "problems": len(problems),
        "samples": len(samples),
        "not_judged": len(samples) - len(judged),
        "accuracy": mean(judged),
        "accuracy_low": low,
        "accuracy_high": high,
        "pass_at": {str(k): pass_at(problems, k) for k in powers},
        "maj_at": {str(k): maj_at(problems, k) for k in powers},
        **_spread("l_critical", [sample.l_critical for sample in samples]),
        **_spread("l_total", [sample.l_total for sample in samples]),
        **_spread("window", [sample.window for sample in samples]),
        "eta_mean": mean(sample.eta for sample in samples),
        "self_speedup": ratio(sum(s.l_total for s in samples), sum(s.l_critical for s in samples)),
        "trigger_rate": mean(sample.blocks > 0 for sample in policy),
        "parallel_ratio": ratio(sum(s.parallel_tokens for s in policy), sum(s.l_total for s in policy)),
        "threads_mean": mean(sample.threads for sample in policy),
        "width_mean": mean(sample.width for sample in forked),
        "depth_mean": mean(sample.depth for sample in forked),
        "redundancy_mean": mean(sample.redundancy for sample in forked),
        "strict": mean(sample.flaw is None for sample in policy),
        "flaws": _counted(sample.flaw for sample in samples if sample.flaw is not None),
        "outcomes": _counted(sample.outcome for sample in samples),
        "answered": mean(sample.outcome == "answered" for sample in samples),
        "distinct_answers": mean(len({s.answer for s in own if s.answer}) for own in problems.values()),
        "distinct_openings": mean(
            len({opening for s in own for opening in s.openings}) / total
            for own in problems.values()
            if (total := sum(len(s.openings) for s in own))
        ),
    }


# -- several samples of a problem --------------------------------------------------------------------------------------


def pass_at(problems: Mapping[str, Samples], k: int) -> float | None:
    """Chance that one of k samples is right, without bias (Chen et al. 2021): mean of 1 - C(n - c, k) / C(n, k) over
    problems with n >= k judged samples, c of them right. n = 4, c = 1, k = 2: 1 - 3/6 = 0.5."""
    shares: list[float] = []
    for own in problems.values():
        judged = [sample.correct for sample in own if sample.correct is not None]
        n, c = len(judged), sum(judged)
        if n >= k:
            shares.append(1 - math.comb(n - c, k) / math.comb(n, k))
    return mean(shares)


def maj_at(problems: Mapping[str, Samples], k: int) -> float | None:
    """Share of problems whose vote of k samples is right; of more than k, the mean over SUBSETS random subsets."""
    shares: list[float] = []
    for name, own in problems.items():
        if len(own) < k:
            continue
        if len(own) == k or k == 1:
            votes = [vote(own)] if len(own) == k else [vote([sample]) for sample in own]
        else:
            random = Random(f"{name} {k}")
            votes = [vote(sorted(random.sample(own, k), key=lambda s: s.number)) for _ in range(SUBSETS)]
        judged = [each for each in votes if each is not None]
        if judged:
            shares.append(sum(judged) / len(judged))
    return mean(shares)


def vote(samples: Samples) -> bool | None:
    """Whether the most frequent answer is right; ties go to the higher mean log-prob, then to who came first. Nobody
    answered: False. None: no verdict on the winner's answer."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.answer:
            groups.setdefault(sample.answer, []).append(sample)
    if not groups:
        return None if samples and all(sample.correct is None for sample in samples) else False

    def weight(group: list[Sample]) -> tuple[int, float]:
        return len(group), sum(-math.inf if s.logprob is None else s.logprob for s in group) / len(group)

    winner = max(groups.values(), key=weight)  # the first of equals
    return next((sample.correct for sample in winner if sample.correct is not None), None)


# -- budgets -----------------------------------------------------------------------------------------------------------


def within_total(samples: Samples, budget: float) -> bool | None:
    """The vote of a problem's first samples whose tokens fit a budget together, as who pays for tokens would take."""
    spent, taken = 0, list[Sample]()
    for sample in samples:
        spent += sample.l_total
        if spent > budget:
            break
        taken.append(sample)
    return vote(taken)


def within_critical(samples: Samples, budget: float) -> bool | None:
    """The vote of all samples whose critical path fits a budget, as who waits, with enough machines, would take."""
    return vote([sample for sample in samples if sample.l_critical <= budget])


def within_window(samples: Samples, budget: float) -> bool | None:
    """Whether the first sample is right and no call of it saw more than `budget` tokens (APR's cumulative accuracy)."""
    first = samples[0]
    return first.correct if first.window <= budget else False


Within = Callable[[Samples, float], bool | None]
AXES: dict[str, Within] = {"total": within_total, "critical": within_critical, "window": within_window}


def accuracy_within(samples: Samples, axis: str, budget: float) -> dict[str, float | int | None]:
    """Share of problems that are right within a budget, with its interval."""
    verdicts = [AXES[axis](own, budget) for own in by_problem(samples).values()]
    judged = [each for each in verdicts if each is not None]
    low, high = wilson(sum(judged), len(judged))
    return {"budget": round(budget, 2), "accuracy": mean(judged), "low": low, "high": high, "problems": len(judged)}


def curve(samples: Samples, axis: str, points: int = 24) -> list[dict[str, float | int | None]]:
    """Accuracy within budgets from the cheapest sample's to all samples' of the dearest problem, evenly spaced in
    logarithms."""
    if not samples:
        return []
    costs = {"total": lambda s: s.l_total, "critical": lambda s: s.l_critical, "window": lambda s: s.window}[axis]
    lowest = max(1, min(costs(sample) for sample in samples))
    if axis == "total":
        highest = max(sum(sample.l_total for sample in own) for own in by_problem(samples).values())
    else:
        highest = max(costs(sample) for sample in samples)
    if highest <= lowest:
        return [accuracy_within(samples, axis, highest)]
    step = (highest / lowest) ** (1 / (points - 1))
    return [
        accuracy_within(samples, axis, max(lowest * step**at, highest if at == points - 1 else 0))
        for at in range(points)
    ]


# -- against another run -----------------------------------------------------------------------------------------------


def speedups(baseline: Samples, ours: Samples) -> dict[str, float | list[float]]:
    """L_critical(baseline) / L_critical(ours) over the same problems: ratio of means, and mean of per-problem ratios.

    Of several samples a problem's mean counts. Intervals are 95% bootstrap percentiles over problems. Baseline 100,
    300 and ours 50, 200: ratio of means 400 / 250 = 1.6, mean of ratios (2 + 1.5) / 2 = 1.75. Raises ValueError unless
    both hold the same problems in order.
    """
    slow, fast = paired(baseline, ours, lambda sample: float(sample.l_critical))
    means, ratios = bootstrap_ratio(slow, fast)
    return {
        "speedup_ratio_of_means": round(sum(slow) / sum(fast), 4),
        "speedup_ratio_of_means_ci95": list(means),
        "speedup_mean_of_ratios": round(sum(a / b for a, b in zip(slow, fast, strict=True)) / len(slow), 4),
        "speedup_mean_of_ratios_ci95": list(ratios),
    }


def paired(one: Samples, other: Samples, figure: Callable[[Sample], float | None]) -> tuple[list[float], list[float]]:
    """The mean figure of each problem in both, of problems where both have one. Raises ValueError unless both hold the
    same problems in order."""
    first, second = by_problem(one), by_problem(other)
    if list(first) != list(second):
        raise ValueError("a comparison needs the same problems in the same order: evaluate both on one data.seed")
    pairs = [(_mean_of(first[name], figure), _mean_of(second[name], figure)) for name in first]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    return [a for a, _ in both], [b for _, b in both]


def adaptivity(samples: Samples, baseline: Samples, bins: int = 4) -> list[dict[str, Any]]:
    """Trigger rate and width against difficulty: problems in equal bins by how much a baseline needs, from those that
    it solves with the shortest critical path to those that it fails at. Raises ValueError as `paired` does."""
    paired(samples, baseline, lambda sample: 0.0)
    theirs, ours = by_problem(baseline), by_problem(samples)

    def effort(name: str) -> tuple[float, float, str]:
        own = theirs[name]
        return -(_mean_of(own, _right) or 0.0), _mean_of(own, lambda s: float(s.l_critical)) or 0.0, name

    order = sorted(theirs, key=effort)
    cuts = [round(at * len(order) / bins) for at in range(bins + 1)]
    rows: list[dict[str, Any]] = []
    for first, last in pairwise(cuts):
        names = order[first:last]
        if not names:
            continue
        all_ = figures([sample for name in names for sample in ours[name]])
        kept = ("problems", "accuracy", "trigger_rate", "width_mean", "threads_mean", "l_critical_mean", "l_total_mean")
        base = figures([sample for name in names for sample in theirs[name]])
        rows.append({key: all_[key] for key in kept} | {"baseline_accuracy": base["accuracy"]})
    return rows


# -- helpers -----------------------------------------------------------------------------------------------------------


def mean(values: Iterable[float | bool]) -> float | None:
    found = [float(value) for value in values]
    return round(sum(found) / len(found), 6) if found else None


def ratio(over: float, under: float) -> float | None:
    return round(over / under, 6) if under else None


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of them does not exceed (no value between two)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {f"{name}_mean": mean(values), f"{name}_p50": quantile(values, 0.5), f"{name}_p90": quantile(values, 0.9)}


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _right(sample: Sample) -> float | None:
    return None if sample.correct is None else float(sample.correct)


def _mean_of(samples: Samples, figure: Callable[[Sample], float | None]) -> float | None:
    values = [value for sample in samples if (value := figure(sample)) is not None]
    return sum(values) / len(values) if values else None


def _accuracies(problems: Mapping[str, Samples]) -> list[float]:
    return [share for own in problems.values() if (share := _mean_of(own, _right)) is not None]
