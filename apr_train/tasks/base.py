"""What a task is: problems, their demonstrations, and the verifier of their answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from rewards.verdict import Verifier
from rollout.demonstration import Demonstration
from rollout.errors import UserError
from rollout.search_trace import SearchRun

Split = Literal["train", "heldout"]
Form = Literal["sequential", "parallel", "checked"]
"""How a solution is laid out. `checked`: in sequence, then threads that only repeat results, which saves no time: it is
there to study which rewards useless threads can game."""


class TaskError(UserError, ValueError):
    """A task cannot give what was asked (bad row, no demonstration, unknown split). Names file, line and reason."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt. `answer` is the verifier's reference; `parts` is how many independent pieces the problem has (1 =
    nothing to parallelise), None where nobody knows."""

    id: str
    prompt: str
    answer: str
    parts: int | None = None
    meta: dict[str, str] = field(default_factory=dict[str, str])


@runtime_checkable
class Splittable(Protocol):
    """A task that knows the parts of its problems, for strategies that take problems apart (docs/strategies.md)."""

    def split(self, problem: Problem) -> list[str]:
        """The texts of the parts, each a problem of its own."""
        ...

    def merge(self, problem: Problem, answers: Sequence[str]) -> str:
        """The answer to the whole, from those of the parts in order."""
        ...


@runtime_checkable
class Rating(Protocol):
    """A task that can tell how far an answer is from right without the gold one, as Graph of Thoughts does."""

    def rate(self, text: str, answer: str) -> float:
        """0 to 1, of an answer to the problem `text`: 1 where nothing is wrong with it, 0 for what is no answer."""
        ...


@runtime_checkable
class JudgesThreads(Protocol):
    """A task that can tell whether a thread did its own part, which node_success then pays for (docs/rewards.md)."""

    def thread_success(self, problem: Problem, asked: str, said: str) -> float | None:
        """0 to 1: how right a thread is that closed itself. None where the task cannot judge it: then having closed
        itself counts as 1.

        `asked`: its outline or sub-problem, in the words of the thread that forked it; "" in a dialect that has none
        (`Dialect.tasks`). `said`: what it wrote, or its answer alone where its parent reads no more (`Dialect.said`).
        Both are the model's: any text at all, of any length. It does not raise.
        """
        ...


class Task(Protocol):
    """A source of problems. Same (split, count, seed) gives the same problems; train and heldout never meet."""

    name: str
    forms: tuple[Form, ...]
    """The forms its demonstrations come in."""
    verifier: Verifier

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """`count` problems of a split, seeded."""
        ...

    def demonstration(self, problem: Problem, form: Form) -> Demonstration | SearchRun:
        """A correct solution in one form; a problem of one part has a sequential form only (TaskError). A task of
        search traces shows a search, which may fail."""
        ...
