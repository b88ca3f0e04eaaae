"""What a dialect answers: where to stop, what a call's end means, what the client writes at forks and joins."""

from dataclasses import dataclass
from typing import Literal, Protocol

from rollout.demonstration import Demonstration
from rollout.errors import UserError
from rollout.tokens import Tokens
from rollout.trajectory import Event, Trajectory

Script = dict[tuple[int, ...], list[tuple[int, ...]]]
"""What each thread samples, turn by turn: {(): [first root turn, second root turn], (0, 1): [its only turn]}."""


class DialectError(UserError, ValueError):
    """A dialect cannot write this demonstration, or its name is unknown. Says which piece and why."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a dialect understood the end of a call: the event, threads to fork, and a reason when malformed."""

    event: Event
    threads: int = 0
    reason: str = ""


class Dialect(Protocol):
    """A tag grammar with its fork, child-prompt and transcript-join rules. All ids, no text, at run time."""

    name: str
    tags: tuple[str, ...]

    def stops(self, in_thread: bool) -> tuple[int, ...]:
        """Ids at which a call of the root (or of a thread) ends."""
        ...

    def read(self, ids: tuple[int, ...], finish: Literal["stop", "length"], in_thread: bool) -> Reading:
        """The event that ended a call which sampled `ids`."""
        ...

    def fork(self, threads: int) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """What the client writes at a fork: ids shared by all threads, then each thread's own header."""
        ...

    def close_thread(self, thread: int) -> tuple[int, ...]:
        """What the client writes after thread `thread` (from 1) when it did not close itself."""
        ...

    def join(self) -> tuple[int, ...]:
        """What the client writes after the last thread, before the parent goes on."""
        ...

    def force_answer(self, response: list[int]) -> tuple[int, ...]:
        """What the client writes to end the reasoning of a root that is out of budget; may be empty."""
        ...

    def check(self, trajectory: Trajectory) -> str | None:
        """None when the trajectory obeys the strict grammar, else the first thing that does not."""
        ...

    def write(self, demonstration: Demonstration) -> Script:
        """The turns a policy would sample to produce this demonstration. Raises DialectError when it cannot."""
        ...


class Reasoning:
    """What every dialect here shares: `<think>` reasoning `</think>` answer, ended by the tokenizer's eos."""

    tags: tuple[str, ...] = ("<think>", "</think>")

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.eos = tokens.eos
        self.think, self.end_think = tokens.tag("<think>"), tokens.tag("</think>")

    def answer(self, answer: str) -> tuple[int, ...]:
        """The tail of every response: close the reasoning, answer, end."""
        return (self.end_think, *self.tokens.text(answer), self.eos)

    def check_reasoning(self, response: list[int]) -> str | None:
        """One `<think>`, at the very start, one `</think>` after it, the eos at the very end and nowhere else."""
        if not response or response[0] != self.think or response.count(self.think) != 1:
            return "reasoning does not start with one <think>"
        if response.count(self.end_think) != 1:
            return "not exactly one </think>"
        if response.count(self.eos) != 1 or response[-1] != self.eos:
            return "the response does not end with its only eos"
        return None
