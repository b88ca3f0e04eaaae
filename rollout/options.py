"""Fills a dataclass from settings a user wrote: names, then types; values are the dataclass's own business."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from rollout.errors import UserError, nearest

Options = TypeVar("Options")


def hint(name: str, known: Iterable[str]) -> str:
    """`did you mean 'steps_min'?`, or all names when none is near.

    >>> hint("part_max", ["parts_max", "seed"]), hint("zzz", ["parts_max", "seed"])
    ("did you mean 'parts_max'?", 'use one of parts_max, seed')
    """
    names = list(known)
    near = nearest(name, names)
    return f"did you mean {near!r}?" if near else f"use one of {', '.join(names)}"


def read_options(
    what: str,
    schema: type[Options],
    given: Mapping[str, Any],
    error: type[UserError],
    also: Iterable[str] = (),
) -> Options:
    """The dataclass filled from `given` (lists become tuples). `error` for an unknown name, a wrong type, a gap.

    `also` are names that are valid in the same place but read elsewhere; they are offered to a misspelt one.

    >>> read_options("task arithmetic", ArithmeticOptions, {"parts_max": 3}, TaskError)
    """
    hints = get_type_hints(schema)
    own = {field.name: field for field in fields(schema)}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in own:
            known = hint(name, [*own, *also]) if own or also else "it takes none"
            raise error(f"{what} has no option {name!r}: {known}")
        values[name] = _tuples(value)
        if not _fits(values[name], hints[name]):
            wanted = _wanted(hints[name])
            raise error(f"{what}, option {name}: {value!r} is not {wanted}")
    for name, field in own.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise error(f"{what} needs a value for {name}")
    return schema(**values)


def read_kind(
    what: str,
    kinds: Mapping[str, type[Any]],
    given: Mapping[str, Any],
    error: type[UserError],
    *,
    default: str | None = None,
    others: tuple[str, ...] = (),
    also: Iterable[str] = (),
) -> Any:
    """The dataclass that `given["kind"]` names in `kinds`, filled from the rest. `others` are further valid names."""
    kind = given.get("kind", default)
    if kind not in kinds:
        known = [*kinds, *others]
        if kind is None:
            raise error(f"{what} needs a kind: one of {', '.join(known)}")
        raise error(f"{what} of kind {kind!r} does not exist: {hint(str(kind), known)}")
    own = {name: value for name, value in given.items() if name != "kind"}
    place = what if what.endswith(str(kind)) else f"{what} of kind {kind}"
    return read_options(place, kinds[kind], own, error, also)


def _wanted(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in cast(list[Any], value)) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (UnionType, Union):  # `Literal[..] | None` is a Union, `int | None` a UnionType
        return any(_fits(value, member) for member in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds, items = get_args(hint), cast(tuple[Any, ...], value)
        return all(_fits(item, kinds[0]) for item in items)
    if hint is Any:
        return True
    if get_origin(hint) in (dict, Mapping):
        key, item = get_args(hint)
        return isinstance(value, Mapping) and all(
            _fits(k, key) and _fits(v, item) for k, v in cast(Mapping[Any, Any], value).items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
