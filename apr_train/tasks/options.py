"""Checks a task's options against its dataclass: names, then types; values are the dataclass's own business."""

from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from apr_train.tasks.base import TaskError
from rollout.errors import nearest

Options = TypeVar("Options")


def hint(name: str, known: list[str]) -> str:
    """`did you mean 'steps_min'?`, or all names when none is near.

    >>> hint("part_max", ["parts_max", "seed"]), hint("zzz", ["parts_max", "seed"])
    ("did you mean 'parts_max'?", 'use one of parts_max, seed')
    """
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near else f"use one of {', '.join(known)}"


def read_options(task: str, schema: type[Options], given: Mapping[str, Any]) -> Options:
    """The dataclass filled from `given` (lists become tuples). TaskError for an unknown name or a wrong type."""
    hints = get_type_hints(schema)
    known = [field.name for field in fields(schema)]  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise TaskError(f"task {task} has no option {name!r}: {hint(name, known)}")
        values[name] = tuple(cast(list[Any], value)) if isinstance(value, list) else value
        if not _fits(values[name], hints[name]):
            wanted = hints[name].__name__ if isinstance(hints[name], type) else hints[name]
            raise TaskError(f"task {task}, option {name}: {value!r} is not {wanted}")
    return schema(**values)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is UnionType:
        return any(_fits(value, member) for member in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in cast(tuple[Any, ...], value))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
