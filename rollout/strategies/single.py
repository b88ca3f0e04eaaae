"""One response: the policy as it is."""

from dataclasses import dataclass

from rollout.strategies.base import Question, Setting, Solved, finished
from rollout.strategies.sampling import respond


@dataclass(frozen=True, slots=True)
class SingleOptions:
    """There is nothing to choose."""


class Single:
    """What is trained, and what every strategy is compared with. The seed is the trajectory's own."""

    def __init__(self, options: SingleOptions = SingleOptions()) -> None:
        self.options = options

    async def solve(self, setting: Setting, question: Question, seed: int) -> Solved:
        trajectory = await respond(setting, question, question.prompt, seed)
        return Solved(trajectory, finished(trajectory))
