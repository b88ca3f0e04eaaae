"""One response: the policy as it is."""

from dataclasses import dataclass

from rollout.strategies.base import Question, Setting, Solved, candidate
from rollout.strategies.sampling import respond


@dataclass(frozen=True, slots=True)
class SingleOptions:
    """There is nothing to choose."""


class Single:
    """What every strategy is compared with. The seed is the trajectory's own."""

    def __init__(self, options: SingleOptions) -> None:
        self.options = options

    async def solve(self, setting: Setting, question: Question, seed: int) -> Solved:
        trajectory = await respond(setting, question, question.prompt, seed)
        only = candidate(trajectory)
        return Solved(trajectory, only.response, (only,))
