"""Intervals and tests: Wilson's for shares, the bootstrap over problems for the rest, sign flips for differences."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

DRAWS = 2000
"""Bootstrap samples, and sign flips of a test."""
Interval = tuple[float, float]


def wilson(successes: float, trials: int, z: float = 1.96) -> Interval:
    """The 95% score interval of a share (Wilson 1927). wilson(9, 10) = (0.596, 0.982); (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    share, shrink = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / shrink
    return max(0.0, round(centre - half, 4)), min(1.0, round(centre + half, 4))


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """95% percentile interval of the mean of one value a problem: problems are drawn, their samples stay together."""
    if not values:
        return -math.inf, math.inf
    data = np.asarray(values, dtype=float)
    return percentiles(data[_draws(len(data), seed)].mean(1))


def bootstrap_ratio(over: Sequence[float], under: Sequence[float], seed: int = 0) -> tuple[Interval, Interval]:
    """95% intervals of the ratio of means, and of the mean of per-problem ratios. Raises ValueError unless all of
    `under` is above 0."""
    top, bottom = np.asarray(over, dtype=float), np.asarray(under, dtype=float)
    if not len(bottom) or bottom.min() <= 0:
        raise ValueError("a ratio needs something above 0 below its line")
    draws = _draws(len(top), seed)
    return percentiles(top[draws].mean(1) / bottom[draws].mean(1)), percentiles((top / bottom)[draws].mean(1))


def sign_flips(differences: Sequence[float], seed: int = 0, draws: int = DRAWS) -> float:
    """Two-sided p of a mean difference of 0, were the sign of each problem's difference a coin's.

    All 2^n signs where there are at most `draws` of them, else as many at random; never below 1 / (draws + 1).
    """
    data = np.asarray(differences, dtype=float)
    data = data[data != 0]
    if not len(data):
        return 1.0
    if len(data) <= int(math.log2(draws)):
        codes = np.arange(1 << len(data))[:, None] >> np.arange(len(data)) & 1
        return float(np.mean(_as_far(codes, data)))
    signs = np.random.default_rng(seed).integers(2, size=(draws, len(data)))
    return float((1 + _as_far(signs, data).sum()) / (draws + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's corrected p values: whichever is below 0.05 is significant, however many were looked at.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    found: dict[str, float] = {}
    largest = 0.0
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    for place, (name, p) in enumerate(ordered):
        largest = max(largest, min(1.0, p * (len(ordered) - place)))
        found[name] = round(largest, 6)
    return found


def percentiles(samples: np.ndarray) -> Interval:
    low, high = np.quantile(samples, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)


def _draws(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(count, size=(DRAWS, count))


def _as_far(codes: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Which sign patterns (rows of 0 and 1) bring the sum as far from 0 as it is; a hair of rounding is none."""
    sums = np.abs((2 * codes - 1) @ data)
    return sums >= abs(data.sum()) - 1e-9 * np.abs(data).sum()
