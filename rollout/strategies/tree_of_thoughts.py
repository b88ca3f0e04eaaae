"""Tree of thoughts (arXiv 2305.10601), breadth first: a beam of partial responses, branched and valued by levels."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rollout.engines.calls import together
from rollout.seeds import mix
from rollout.strategies.base import Ids, Question, Setting, Solved, StrategyError, filled
from rollout.strategies.merge import Name
from rollout.strategies.writing import Separator, State, Writer

WORDS = {"sure": 20.0, "likely": 1.0, "impossible": 0.001}
_WORD = re.compile(r"\b(sure|likely|impossible)\b", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class TreeOfThoughtsOptions:
    """The paper's Game of 24: 4 steps (3 moves and the answer), 5 states kept, 3 value calls a state, whose `sure`,
    `likely` and `impossible` count 20, 1 and 0.001. Its creative writing: 5 votes of a level. It proposes thoughts in
    one call there; here they are sampled, 5 of a state, as in its creative writing.

    A thought ends with `separator`, or after `thought_tokens` if given; the last one with the response. Templates are
    ours: `{problem}`, `{thoughts}` (one state) and `{choices}` (all, numbered) are filled in. `value=logprob` needs no
    calls: the mean log-prob of the response so far.
    """

    steps: int = 4
    branch: int = 5
    keep: int = 5
    value: Literal["prompt", "vote", "logprob"] = "prompt"
    value_calls: int = 3
    votes: int = 5
    separator: str = "\n"
    thought_tokens: int | None = None
    value_tokens: int = 64
    value_template: str = (
        "Problem:\n{problem}\nPartial solution:\n{thoughts}\nCan this still lead to a right answer? "
        "Reply with one word: sure, likely or impossible."
    )
    vote_template: str = (
        "Problem:\n{problem}\nPartial solutions:\n{choices}\nWhich one is most promising? Reply with its number."
    )

    def __post_init__(self) -> None:
        counts = (self.steps, self.branch, self.keep, self.value_calls, self.votes, self.value_tokens)
        if min(*counts, self.thought_tokens or 1) < 1 or self.thought_tokens == 0:
            raise StrategyError("strategy tree_of_thoughts: steps, calls and tokens are 1 or more")


@dataclass(frozen=True, slots=True)
class _Valued:
    state: State
    value: float
    calls: tuple[int, ...] = ()
    """The segments that the value was read from."""


class TreeOfThoughts:
    """All calls of a level run side by side; selection waits for all of them, and so does what comes after it."""

    def __init__(self, options: TreeOfThoughtsOptions) -> None:
        self.options = options
        self.separator = Separator(options.separator, "tree_of_thoughts")

    async def solve(self, setting: Setting, question: Question, seed: int) -> Solved:
        options = self.options
        writer = Writer(setting, question, "tree_of_thoughts")
        ends = () if options.thought_tokens else self.separator.ids(setting.tokens)
        beam = [_Valued(writer.start, 0.0)]
        barrier: tuple[int, ...] = ()
        for step in range(options.steps):
            stops = None if step + 1 == options.steps else ends
            states = [each.state for each in beam if each.state.ended is None for _ in range(options.branch)]
            grown = await together(
                self._branch(writer, state, stops, (2 * step, k), mix(seed, step, k), barrier)
                for k, state in enumerate(states, start=1)
            )
            new = [each for each, old in zip(grown, states, strict=True) if each.state.last != old.last]
            barrier = tuple(segment for each in new for segment in (each.state.last, *each.calls)) or barrier
            ended = [each for each in beam if each.state.ended is not None]
            pool = [each for each in (*ended, *grown) if each.state.ended != "truncated"]
            if options.value == "vote" and len(pool) > 1 and grown:
                pool, votes = await self._vote(writer, pool, 2 * step + 1, mix(seed, step), barrier)
                barrier = (*barrier, *votes)
            beam = sorted(pool, key=lambda each: -each.value)[: options.keep]  # of equal ones the first sampled
        return writer.solved(next((each.state for each in beam if each.state.finished), None))

    async def _branch(
        self, writer: Writer, state: State, stops: Ids | None, name: Name, seed: int, after: tuple[int, ...]
    ) -> _Valued:
        """One thought more, and its value; without `stops` the rest of the response."""
        options = self.options
        most = None if stops is None else options.thought_tokens
        wrote = await writer.think(state, name, seed, after, stops=stops or (), most=most)
        if options.value == "vote" or wrote.ended == "truncated":
            return _Valued(wrote, 0.0)
        if options.value == "logprob":
            return _Valued(wrote, wrote.logprob)
        text = filled(options.value_template, problem=writer.question.text, thoughts=writer.text(wrote.ids))
        replies = await together(
            writer.ask(text, (*name, 0, call), mix(seed, 0, call), (wrote.last,), options.value_tokens)
            for call in range(1, options.value_calls + 1)
        )
        return _Valued(wrote, sum(value_of(reply) for reply, _ in replies), segments_of(replies))

    async def _vote(
        self, writer: Writer, pool: Sequence[_Valued], block: int, seed: int, after: tuple[int, ...]
    ) -> tuple[list[_Valued], tuple[int, ...]]:
        """The same states, valued by how many calls chose each; and the segments of those calls."""
        options = self.options
        choices = "\n".join(f"{i}: {writer.text(each.state.ids)}" for i, each in enumerate(pool, start=1))
        text = filled(options.vote_template, problem=writer.question.text, choices=choices)
        replies = await together(
            writer.ask(text, (block, call), mix(seed, 0, call), after, options.value_tokens)
            for call in range(1, options.votes + 1)
        )
        counts = Counter(vote_of(reply, len(pool)) for reply, _ in replies)
        return [_Valued(each.state, counts[i]) for i, each in enumerate(pool, start=1)], segments_of(replies)


def value_of(reply: str) -> float:
    """Of the last word that is one of `sure`, `likely` and `impossible`; 0 without one."""
    said = _WORD.findall(reply)
    return WORDS[said[-1].lower()] if said else 0.0


def vote_of(reply: str, choices: int) -> int:
    """The last number from 1 to `choices`; 0, which is no choice, without one."""
    return next((int(number) for number in reversed(_NUMBER.findall(reply)) if 1 <= int(number) <= choices), 0)


def segments_of(replies: Sequence[tuple[str, int | None]]) -> tuple[int, ...]:
    """Where the replies are, of calls that could be made."""
    return tuple(segment for _, segment in replies if segment is not None)
