"""What a dialect answers: where to stop, what a call's end means, what the client writes at forks and joins."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

from rollout.demonstration import Demonstration
from rollout.errors import UserError
from rollout.search_trace import SearchRun
from rollout.tokens import Tokens
from rollout.trajectory import Event, Trajectory

Ids = tuple[int, ...]
Name = tuple[int, ...]
"""A thread, as in `Segment.thread`."""
Join = Literal["transcript", "message", "stitched"]
"""What the parent reads after a block. `transcript`: all threads, one after the other, as one flat context. `stitched`:
all threads as they were written, hidden from each other. `message`: only what the client tells it; and a thread reads
only what it was passed."""
NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})
Script = dict[Name, list[Ids]]
"""What each thread samples, turn by turn: {(): [first root turn, second root turn], (0, 1): [its only turn]}."""


class DialectError(UserError, ValueError):
    """A dialect cannot write this demonstration, or its name or settings are unknown. Says which piece and why."""


@dataclass(frozen=True, slots=True)
class Child:
    """One thread of a fork. It reads the parent's context and then `header`; `fresh`: `header` alone.

    The client writes `close` after a thread that did not close itself.
    """

    header: Ids
    close: Ids = ()
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Fork:
    """What a call asks for: threads, and how the parent meets them again.

    `shared`: what the client writes once, before all threads. `ends` says when a block is over: when `all` threads
    are, or with the first that closes itself, of which the parent then reads only that `winner`, or all threads `cut`
    at that step; threads that race so cannot fork. `label`: the parent goes on at once and names the threads by it when
    it wants to wait for them; there are `slots` equal shares of the budget, for them and for itself. `drops`: how many
    ids at the end of the turn no later context holds, since the join takes their place; not with a stitched join.
    """

    children: tuple[Child, ...]
    shared: Ids = ()
    ends: Literal["all", "winner", "cut"] = "all"
    label: int | None = None
    slots: int = 1
    drops: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """A call that ended: the ids it sampled, why it stopped, whose it is, and all that this thread had written or been
    handed before, without what other threads wrote. `prompt` is the trajectory's."""

    ids: Ids
    finish: Literal["stop", "length"]
    thread: Name
    before: Ids = ()
    prompt: Ids = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """How a dialect understood the end of a call. `fork` with event "fork", `label` with "wait"; a `reason` when
    malformed."""

    event: Event
    fork: Fork | None = None
    label: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a thread: all that it sampled, and whether it closed itself as the grammar wants."""

    ids: Ids
    closed: bool


class Dialect(Protocol):
    """A tag grammar with its fork, child-prompt and join rules. All ids, no text, at run time."""

    join_rule: Join

    @property
    def name(self) -> str: ...

    @property
    def closing(self) -> int | None:
        """The most ids that `force_answer` writes; None where a response that did not end has no answer to force."""
        ...

    def begin(self) -> Fork | None:
        """A fork that the client makes before the root samples anything, in dialects that have one."""
        ...

    def stops(self, thread: Name) -> Ids:
        """Ids at which a call of this thread ends; () is the root."""
        ...

    def read(self, turn: Turn) -> Reading:
        """The event that ended a call."""
        ...

    def join(self, fork: Fork, results: Sequence[Result], thread: Name) -> Ids:
        """What the client writes in `thread` when it meets the threads of `fork` again. With the rule "message" it may
        hold up to all that they sampled and `join_tokens` more; else it does not depend on them."""
        ...

    def join_tokens(self, fork: Fork, thread: Name) -> int:
        """The most ids that `join` writes, copies of what the threads sampled not counted."""
        ...

    def force_answer(self, response: Ids) -> Ids:
        """What the client writes to end the reasoning of a root that is out of budget; may be empty."""
        ...

    def check(self, trajectory: Trajectory) -> str | None:
        """None when the trajectory obeys the strict grammar, else the first thing that does not."""
        ...

    def tasks(self, trajectory: Trajectory) -> dict[Name, str]:
        """What each thread was asked for, in its parent's words: an outline, a sub-problem. Threads that all have the
        same words, or none, are left out."""
        ...

    def said(self, ids: Ids) -> Ids:
        """What a thread that closed itself has to say, of all that it sampled before its closing tag: the answer alone
        where its parent reads nothing else."""
        ...

    def write(self, demonstration: Demonstration | SearchRun) -> Script:
        """The turns a policy would sample to produce this demonstration. Raises DialectError when it cannot."""
        ...


class Reasoning:
    """What nearly every dialect here shares: `<think>` reasoning `</think>` answer, ended by the tokenizer's eos."""

    think_tags: ClassVar[tuple[str, str]] = ("<think>", "</think>")
    closing: int | None = 1

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.eos = tokens.eos
        self.think, self.end_think = map(tokens.tag, self.think_tags)

    def begin(self) -> Fork | None:
        return None

    def tasks(self, trajectory: Trajectory) -> dict[Name, str]:
        return {}

    def said(self, ids: Ids) -> Ids:
        return ids

    def answer(self, answer: str) -> Ids:
        """The tail of every response: close the reasoning, answer, end."""
        return (self.end_think, *self.tokens.text(answer), self.eos)

    def check_reasoning(self, response: Sequence[int]) -> str | None:
        """One `<think>`, at the very start, one `</think>` after it, the eos at the very end and nowhere else."""
        if not response or response[0] != self.think or response.count(self.think) != 1:
            return "reasoning does not start with one <think>"
        if response.count(self.end_think) != 1:
            return "not exactly one </think>"
        if response.count(self.eos) != 1 or response[-1] != self.eos:
            return "the response does not end with its only eos"
        return None

    @staticmethod
    def check_outcome(trajectory: Trajectory) -> str | None:
        """Whether the policy itself ended the response: what the client closed may look the same."""
        return None if trajectory.outcome == "answered" else f"the response ended as {trajectory.outcome}"


def forks(trajectory: Trajectory) -> Iterator[tuple[Name, Ids]]:
    """Every call that forked: the name of its block, that of thread k without the k, and what the call sampled."""
    turns: dict[Name, int] = {}
    for call in trajectory.calls:
        if call.event == "kept":  # the first part of a turn
            continue
        sampled = trajectory.segments[call.sampled]
        turn = turns.get(sampled.thread, 0)
        turns[sampled.thread] = turn + 1
        if call.event == "fork":
            yield (*sampled.thread, turn), sampled.ids


def told(demonstration: Demonstration | SearchRun, dialect: str) -> Demonstration:
    """The demonstration, where it is one of reasoning. Raises DialectError for a search trace."""
    if isinstance(demonstration, SearchRun):
        raise DialectError(f"dialect {dialect} writes reasoning, not search traces: use data=countdown, or dialect=apr")
    return demonstration
