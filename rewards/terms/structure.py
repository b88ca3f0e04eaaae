"""Terms about the shape of a trajectory: whether, how much and how well it ran in parallel."""

from dataclasses import dataclass
from typing import ClassVar

from rewards.errors import RewardError
from rewards.scored import Group, Scored


@dataclass(frozen=True, slots=True)
class One:
    """1: with a weight and gates, a bonus or a penalty for what the gates say.

    Parallel-R1's malformed block that was right costs 2: weight -2, gate [correct, parallel, malformed].
    """

    judges_answer: ClassVar[bool] = False

    def __call__(self, scored: Scored, group: Group) -> float:
        return 1.0


@dataclass(frozen=True, slots=True)
class Structure:
    """1 with at least one parallel block and no breach of the grammar, else 0 (Parallel-R1, arXiv 2509.07980)."""

    judges_answer: ClassVar[bool] = False

    def __call__(self, scored: Scored, group: Group) -> float:
        return float(scored.lengths.blocks > 0 and scored.flaw is None)


@dataclass(frozen=True, slots=True)
class StrictFormat:
    """1 without a breach of the dialect's grammar, else 0; a sequential response is well formed too."""

    judges_answer: ClassVar[bool] = False

    def __call__(self, scored: Scored, group: Group) -> float:
        return float(scored.flaw is None)


@dataclass(frozen=True, slots=True)
class Trigger:
    """1 with at least one block that ran in parallel, else 0 (NPR's genuine parallelism, eq. 8, per trajectory)."""

    judges_answer: ClassVar[bool] = False

    def __call__(self, scored: Scored, group: Group) -> float:
        return float(scored.lengths.blocks > 0)


@dataclass(frozen=True, slots=True)
class ParallelRatio:
    """Share of response tokens inside threads. 150 of 179 tokens: 0.838."""

    judges_answer: ClassVar[bool] = False

    def __call__(self, scored: Scored, group: Group) -> float:
        return scored.lengths.parallel_ratio


@dataclass(frozen=True, slots=True)
class Threads:
    """The number of threads. A warning, not advice: it pays for threads that do nothing. Two blocks of 3 and 2: 5."""

    judges_answer: ClassVar[bool] = False

    def __call__(self, scored: Scored, group: Group) -> float:
        return float(scored.lengths.threads)


@dataclass(frozen=True, slots=True)
class Instantiate:
    """min(1, threads / most): PARL's bonus for starting sub-agents, against serial collapse (Kimi K2.5).

    The published formula is not known; this is its description. 2 threads, most 4: 0.5.
    """

    judges_answer: ClassVar[bool] = False
    most: int = 4

    def __post_init__(self) -> None:
        if self.most < 1:
            raise RewardError(f"instantiate needs most >= 1, not {self.most}")

    def __call__(self, scored: Scored, group: Group) -> float:
        return min(1.0, scored.lengths.threads / self.most)


@dataclass(frozen=True, slots=True)
class Finish:
    """Share of threads that closed themselves; 0 without threads. PARL's guard against empty spawning (Kimi K2.5).

    Three threads, one cut off by its budget: 2 / 3.
    """

    judges_answer: ClassVar[bool] = False

    def __call__(self, scored: Scored, group: Group) -> float:
        threads = scored.threads.values()
        return sum(thread.finished for thread in threads) / len(threads) if threads else 0.0
