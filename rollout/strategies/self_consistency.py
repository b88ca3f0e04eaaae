"""Self-consistency (arXiv 2203.11171): many independent responses, and the answer that most of them give."""

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.strategies.base import Candidate, Question, Setting, Solved, StrategyError, candidate
from rollout.strategies.merge import merge
from rollout.strategies.sampling import sample


@dataclass(frozen=True, slots=True)
class SelfConsistencyOptions:
    """`samples`: the paper's 40 (there at temperature 0.5 to 0.7 with top-k 40; here the run's own temperature, and no
    truncation)."""

    samples: int = 40

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise StrategyError(f"strategy self_consistency needs samples of 1 or more, got {self.samples}")


class SelfConsistency:
    """Unfinished responses have no vote, nor has one without an answer, unless all are."""

    def __init__(self, options: SelfConsistencyOptions) -> None:
        self.options = options

    async def solve(self, setting: Setting, question: Question, seed: int) -> Solved:
        trajectories = await sample(setting, question, self.options.samples, seed)
        candidates = [candidate(setting, question, each) for each in trajectories]
        chosen = majority(candidates)
        response = () if chosen is None else candidates[chosen].response
        return Solved(merge(setting, question, trajectories, chosen), response)


def groups(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Finished candidates with one answer, as indices; both in the order of the candidates. Those without an answer are
    one group where no candidate has any, else none."""
    found: dict[str | None, list[int]] = {}
    for index, each in enumerate(candidates):
        if each.response:
            found.setdefault(each.answer, []).append(index)
    return [group for answer, group in found.items() if answer is not None or len(found) == 1]


def majority(candidates: Sequence[Candidate]) -> int | None:
    """The likeliest candidate of the largest group; None when none finished. Of groups of one size the one wins whose
    mean log-probs are higher on average; of equal ones, the first sampled. The same vote as maj@k."""
    found = groups(candidates)
    if not found:
        return None

    def weight(group: list[int]) -> tuple[int, float]:
        return len(group), sum(candidates[index].logprob for index in group) / len(group)

    return max(max(found, key=weight), key=lambda index: (candidates[index].logprob, -index))
