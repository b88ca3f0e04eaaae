"""The registry: a task's name and options to the task."""

from collections.abc import Callable, Mapping
from typing import Any

from apr_train.tasks.arithmetic import Arithmetic, ArithmeticOptions
from apr_train.tasks.base import Task, TaskError
from apr_train.tasks.corpus import Corpus, CorpusOptions
from apr_train.tasks.countdown import Countdown, CountdownOptions
from apr_train.tasks.countdown_search import CountdownSearch, SearchOptions
from apr_train.tasks.gym import Gym, GymOptions
from apr_train.tasks.jsonl import Jsonl, JsonlOptions
from apr_train.tasks.multiplication import Multiplication, MultiplicationOptions
from apr_train.tasks.set_intersection import SetIntersection, SetIntersectionOptions
from apr_train.tasks.sorting import Sorting, SortingOptions
from rewards.verdict import Verifier
from rollout.options import hint, read_options

_TASKS: dict[str, tuple[Callable[[Any], Task], type]] = {
    "arithmetic": (Arithmetic, ArithmeticOptions),
    "corpus": (Corpus, CorpusOptions),
    "countdown": (Countdown, CountdownOptions),
    "countdown_search": (CountdownSearch, SearchOptions),
    "jsonl": (Jsonl, JsonlOptions),
    "multiplication": (Multiplication, MultiplicationOptions),
    "reasoning_gym": (Gym, GymOptions),
    "set_intersection": (SetIntersection, SetIntersectionOptions),
    "sorting": (Sorting, SortingOptions),
}


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """The task `name` with its options. TaskError for an unknown name or option names the valid one; also for a task
    whose verifier lacks a method.

    >>> make_task("multiplication", {"factors_min": 4}).name
    'multiplication'
    """
    if name not in _TASKS:
        raise TaskError(f"there is no task {name!r}: {hint(name, sorted(_TASKS))}")
    task, schema = _TASKS[name]
    made = task(read_options(f"task {name}", schema, options, TaskError))
    if not isinstance(made.verifier, Verifier):
        raise TaskError(f"task {name}: its verifier has no method answer(response): see docs/howto/task.md")
    return made
