"""Whole responses that wait for others: the DAG of strategies whose prompts hold what earlier responses said."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from rollout.strategies.base import (
    Candidate,
    Ids,
    Question,
    Setting,
    Solved,
    StrategyError,
    candidate,
    client_answer,
    spell,
)
from rollout.strategies.merge import Record
from rollout.strategies.sampling import respond_all
from rollout.trajectory import Outcome


@dataclass(frozen=True, slots=True)
class Reply:
    """One response: what became of it, and the segments that were the last of it."""

    candidate: Candidate
    ends: tuple[int, ...]

    @property
    def answer(self) -> str | None:
        """As later prompts show it; None where there is none."""
        return self.candidate.answer


class Graph:
    """Block after block of responses, those of one block side by side."""

    def __init__(self, setting: Setting, question: Question, strategy: str) -> None:
        self.setting, self.question, self.strategy = setting, question, strategy
        self.record = Record(question.prompt)
        self.blocks = 0

    async def ask(self, texts: Sequence[str], seed: int, after: Sequence[int] = ()) -> list[Reply]:
        """A response of the policy to each prompt, whose text could be written when the segments `after` were there.
        Number i (from 0) has the seed `mix(seed, i)`. Raises StrategyError for text without spelling."""
        block, self.blocks = self.blocks, self.blocks + 1
        own = self.question.text, self.question.prompt
        prompts = [own[1] if text == own[0] else spell(self.setting.tokens, text, self.strategy) for text in texts]
        done = await respond_all(self.setting, self.question, prompts, seed)
        replies: list[Reply] = []
        for number, each in enumerate(done, start=1):
            at = self.record.graft(each, (block, number), after)
            above = {parent for segment in each.segments for parent in segment.parents}
            ends = tuple(at[index] for index in range(len(each.segments)) if index not in above)
            replies.append(Reply(candidate(self.setting, self.question, each), ends))
        return replies

    def write(self, answer: str, after: Sequence[int]) -> tuple[Ids, tuple[int, ...]]:
        """A whole response by the client, when `after` was there: its ids, and the segment that holds them."""
        ids = client_answer(self.setting.dialect, self.setting.tokens, answer)
        return ids, (self.record.add("forced", ids, after, ()),)

    def said(self, reply: Reply) -> str:
        """What a finished response says after its reasoning."""
        whole = self.setting.tokens.decode(reply.candidate.response[:-1])
        return whole.rpartition("</think>")[2].strip()

    def score(self, problem: str, reply: Reply) -> float:
        """The task's score of this answer to `problem`, else the geometric mean of its tokens' probabilities; below all
        others for a response without an answer."""
        if reply.answer is None:
            return float("-inf")
        return (
            exp(reply.candidate.logprob) if self.question.score is None else self.question.score(problem, reply.answer)
        )

    def best(self, problem: str, replies: Sequence[Reply]) -> Reply | None:
        """The one with the highest score, of equal ones the first; None where none has an answer."""
        found = max(replies, key=lambda reply: self.score(problem, reply), default=None)
        return None if found is None or found.answer is None else found

    def solved(self, response: Ids, outcome: Outcome) -> Solved:
        return Solved(self.record.trajectory(self.setting, self.question, outcome), response)

    def unsolved(self, why: str, outcome: Outcome = "truncated") -> Solved:
        """Nothing to judge; `why` is counted."""
        self.record.note(f"strategy/{why}")
        return self.solved((), outcome)


def ends_of(replies: Sequence[Reply]) -> tuple[int, ...]:
    """What there must be before anything that waits for all of them."""
    return tuple(segment for reply in replies for segment in reply.ends)


def split_of(question: Question, strategy: str) -> list[str]:
    """The texts of the problem's parts. Raises StrategyError where its task cannot split it."""
    parts = question.split() if question.split is not None else []
    if not parts:
        raise StrategyError(f"strategy {strategy} needs a task that splits its problems: {question.id} has no parts")
    return parts
