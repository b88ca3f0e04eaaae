"""A reward term: do the threads of a block take equally long?"""

from dataclasses import dataclass
from typing import ClassVar

from rewards.errors import RewardError
from rewards.scored import Group, Scored


@dataclass(frozen=True, slots=True)
class Balance:
    """Mean over blocks of (mean tokens of its threads / tokens of the longest) ** power; 0 without a block.

    Threads of 30 and 50 tokens, power 1: 40 / 50 = 0.8. `power` (at least 1) makes uneven blocks worth less.
    """

    judges_answer: ClassVar[bool] = False
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.power < 1:
            raise RewardError(f"a balance term needs power >= 1, not {self.power}")

    def __call__(self, scored: Scored, group: Group) -> float:
        shares = list[float]()
        for threads in scored.blocks.values():
            lengths = [thread.tokens for thread in threads]
            shares.append((sum(lengths) / len(lengths) / max(lengths)) ** self.power if max(lengths) else 0.0)
        return sum(shares) / len(shares) if shares else 0.0
