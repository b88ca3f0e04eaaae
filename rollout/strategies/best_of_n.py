"""Best of N (arXiv 2110.14168): many independent responses, and the one that a score prefers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Literal

from rollout.strategies.base import Candidate, Question, Setting, Solved, StrategyError, candidate
from rollout.strategies.merge import merge
from rollout.strategies.sampling import sample
from rollout.strategies.self_consistency import groups


@dataclass(frozen=True, slots=True)
class BestOfNOptions:
    """`samples`: the paper's 100. `score`: `logprob` is the probability of a token, as a geometric mean over the
    response; `verifier_oracle` is 1 for a right answer, which no one knows at test time: an upper bound (pass@N), never
    a baseline. `weighted`: scores of equal answers are added up first."""

    samples: int = 100
    score: Literal["logprob", "verifier_oracle"] = "logprob"
    weighted: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise StrategyError(f"strategy best_of_n needs samples of 1 or more, got {self.samples}")


class BestOfN:
    """Unfinished responses are no candidates."""

    def __init__(self, options: BestOfNOptions) -> None:
        self.options = options

    async def solve(self, setting: Setting, question: Question, seed: int) -> Solved:
        if self.options.score == "verifier_oracle" and question.judge is None:
            raise StrategyError("strategy best_of_n, score=verifier_oracle: there is no verifier; use score=logprob")
        trajectories = await sample(setting, question, self.options.samples, seed)
        candidates = [candidate(setting, question, each) for each in trajectories]
        scores = [self._score(each, setting, question) for each in candidates]
        chosen = best(candidates, scores, weighted=self.options.weighted)
        response = () if chosen is None else candidates[chosen].response
        return Solved(merge(setting, question, trajectories, chosen), response)

    def _score(self, of: Candidate, setting: Setting, question: Question) -> float:
        if self.options.score == "logprob" or question.judge is None:
            return exp(of.logprob)
        return float(bool(of.response) and question.judge(setting.tokens.decode(of.response[:-1])))


def best(candidates: Sequence[Candidate], scores: Sequence[float], *, weighted: bool) -> int | None:
    """The finished candidate with the highest score, of equal ones the first; None when none finished. `weighted`:
    within the group of equal answers whose scores add up to most."""
    pool = [index for index, each in enumerate(candidates) if each.response]
    if weighted and pool:
        pool = max(groups(candidates), key=lambda group: (sum(scores[index] for index in group), -group[0]))
    return max(pool, key=lambda index: (scores[index], -index), default=None)
