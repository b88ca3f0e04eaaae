"""Terms about how many tokens were spent, where, and how many of them twice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from rewards.errors import RewardError
from rewards.scored import Group, Scored


@dataclass(frozen=True, slots=True)
class TotalTokens:
    """L_total / per: what a response costs, however arranged. L_total 250, per 1000: 0.25 (weight it below 0)."""

    judges_answer: ClassVar[bool] = False
    per: float = 1000.0

    def __post_init__(self) -> None:
        if self.per <= 0:
            raise RewardError(f"total_tokens needs per > 0, not {self.per}")

    def __call__(self, scored: Scored, group: Group) -> float:
        return scored.lengths.l_total / self.per


@dataclass(frozen=True, slots=True)
class Redundancy:
    """How much sibling threads repeat each other, 0 to 1 (weight it below 0).

    For each thread: the largest Jaccard overlap of its n-grams of sampled tokens with a sibling's, the part above
    `free` scaled to (0, 1]; then the mean over all threads, or the largest. A thread without siblings counts 0, and so
    does a pair of which one is empty.

    Two equal threads and a third that shares nothing: (1 + 1 + 0) / 3 = 2/3, or 1 with `over_threads: largest`, which
    further threads of no use cannot dilute. Overlap 0.85 with free 0.7 counts 0.5.
    """

    judges_answer: ClassVar[bool] = False
    n: int = 4
    free: float = 0.7
    """Overlap that costs nothing: siblings share names and turns of phrase."""
    over_threads: Literal["mean", "largest"] = "mean"

    def __post_init__(self) -> None:
        if self.n < 1 or not 0.0 <= self.free < 1.0:
            raise RewardError(f"redundancy needs n >= 1 and 0 <= free < 1, not n={self.n}, free={self.free}")

    def __call__(self, scored: Scored, group: Group) -> float:
        return self.of(scored)

    def of(self, scored: Scored) -> float:
        """The same, of a trajectory alone."""
        counts: list[float] = []
        for siblings in scored.blocks.values():
            grams = [_grams(thread.sampled, self.n) for thread in siblings]
            largest = [0.0] * len(grams)
            for i in range(len(grams)):
                for j in range(i):
                    overlap = _jaccard(grams[i], grams[j])
                    largest[i], largest[j] = max(largest[i], overlap), max(largest[j], overlap)
            counts += [max(0.0, overlap - self.free) / (1.0 - self.free) for overlap in largest]
        if self.over_threads == "largest":
            return max(counts, default=0.0)
        return sum(counts) / len(counts) if counts else 0.0


@dataclass(frozen=True, slots=True)
class DelegatedLength:
    """-min(most, p_root + p_thread), p = weight * (1 - exp(-(L - free) / scale)) above `free` tokens, else 0.

    SELFCEST (arXiv 2602.13262): L is the root's own tokens for p_root and the longest thread's for p_thread. Its
    max(0, 1[correct] - penalty) is outcome plus this behind the gate `correct`, for `most` <= 1.
    Root of 768 tokens, longest thread of 1,024: 0.3 * (1 - 1/e) + 0.2 * (1 - 1/e) = 0.316, so -0.316.
    """

    judges_answer: ClassVar[bool] = False
    root_weight: float = 0.3
    root_free: int = 512
    root_scale: float = 256.0
    thread_weight: float = 0.2
    thread_free: int = 512
    thread_scale: float = 512.0
    most: float = 0.5

    def __call__(self, scored: Scored, group: Group) -> float:
        longest = max((thread.tokens for thread in scored.threads.values()), default=0)
        root = self.root_weight * _saturating(scored.root_tokens - self.root_free, self.root_scale)
        thread = self.thread_weight * _saturating(longest - self.thread_free, self.thread_scale)
        return -min(self.most, root + thread)


@dataclass(frozen=True, slots=True)
class BudgetViolation:
    """[stopped by the client] + the excess over each limit, relative to it (weight it below 0).

    Stopped: the answer was forced, the text truncated, or a thread cut off. Limits in tokens or threads are settings of
    the term, never read from what the model wrote. critical 100, L_critical 125, nothing stopped: 0.25.
    """

    judges_answer: ClassVar[bool] = False
    total: int | None = None
    critical: int | None = None
    threads: int | None = None

    def __call__(self, scored: Scored, group: Group) -> float:
        lengths = scored.lengths
        unfinished = any(not thread.finished for thread in scored.threads.values())
        stopped = unfinished or scored.trajectory.outcome in ("forced_answer", "truncated")
        limits = ((self.total, lengths.l_total), (self.critical, lengths.l_critical), (self.threads, lengths.threads))
        return float(stopped) + sum(max(0.0, used / limit - 1.0) for limit, used in limits if limit is not None)


def _saturating(over: int, scale: float) -> float:
    return 1.0 - math.exp(-over / scale) if over > 0 else 0.0


def _grams(ids: Sequence[int], n: int) -> frozenset[tuple[int, ...]]:
    """All runs of n tokens; the whole text when it is shorter."""
    if len(ids) <= n:
        return frozenset([tuple(ids)] if ids else [])
    return frozenset(zip(*(ids[start:] for start in range(n)), strict=False))


def _jaccard(one: frozenset[tuple[int, ...]], other: frozenset[tuple[int, ...]]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if shared else 0.0
