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
