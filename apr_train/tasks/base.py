"""What a task is: problems, their demonstrations, and the verifier of their answers."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

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
