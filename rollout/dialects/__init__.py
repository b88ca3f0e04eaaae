"""One file a dialect; `make_dialect` finds it by name, in this package or in a file of the user's."""

import sys
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol, cast

from rollout.dialects.apr import Apr
from rollout.dialects.asyncthink import AsyncThink
from rollout.dialects.base import NO_SETTINGS, Dialect, DialectError, Join
from rollout.dialects.dc_cot import DcCot
from rollout.dialects.multiverse import Multiverse
from rollout.dialects.npr import Npr
from rollout.dialects.parallel_r1 import ParallelR1
from rollout.dialects.parason import Parason
from rollout.dialects.parathinker import ParaThinker
from rollout.dialects.recursive import Recursive
from rollout.dialects.sequential import Sequential
from rollout.dialects.threadweaver import ThreadWeaver
from rollout.errors import nearest, shortened
from rollout.tokens import Tokens


class DialectClass(Protocol):
    """What a dialect's class must have besides being a `Dialect`."""

    name: str
    joins: tuple[Join, ...]
    """The join rules it can be run under, its own first."""

    def __call__(
        self, tokens: Tokens, join: Join | None = None, options: Mapping[str, Any] = NO_SETTINGS
    ) -> Dialect: ...

    def tags(self, options: Mapping[str, Any] = NO_SETTINGS) -> tuple[str, ...]:
        """The tags that the tokenizer must know, each as one special token."""
        ...


_CLASSES = (Sequential, ThreadWeaver, Parason, Multiverse, Npr, ParallelR1, DcCot, ParaThinker)
_MESSAGE_CLASSES = (Apr, AsyncThink, Recursive)
DIALECTS: dict[str, DialectClass] = {d.name: cast(DialectClass, d) for d in (*_CLASSES, *_MESSAGE_CLASSES)}


def dialect_class(name: str) -> DialectClass:
    """The class called `name`, or `Class` of a file of the user's, as `path/to/file.py:Class`. DialectError names the
    nearest.

    >>> dialect_class("npr").joins
    ('stitched', 'transcript')
    """
    file, colon, cls = name.rpartition(":")
    if colon:
        return _from_file(Path(file).expanduser(), cls)
    if name not in DIALECTS:
        near = nearest(name, DIALECTS)
        hint = f"did you mean {near}?" if near else f"use one of {', '.join(DIALECTS)}, or path/to/file.py:Class"
        raise DialectError(f"there is no dialect {name!r}; {hint}")
    return DIALECTS[name]


def _from_file(file: Path, cls: str) -> DialectClass:
    """A dialect of the user's own."""
    spec = spec_from_file_location(f"dialect_{file.stem}", file) if file.is_file() else None
    if spec is None or spec.loader is None:
        raise DialectError(f"dialect.name={file}:{cls}: there is no such Python file")
    module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's, and so is whatever it raises
        why = f"{type(error).__name__}: {error}"
        raise DialectError(f"dialect.name={file}:{cls} cannot be imported ({shortened(why)})") from error
    found = getattr(module, cls, None)
    wanted = ("name", "joins", "tags", "read", "check", "write", "tasks", "said")
    missing = [name for name in wanted if not hasattr(found, name)]
    if missing:
        raise DialectError(f"dialect.name={file}:{cls} is no dialect, it has no {missing[0]}: see docs/dialects.md")
    return cast(DialectClass, found)


def make_dialect(
    name: str, tokens: Tokens, join: str | None = None, options: Mapping[str, Any] = NO_SETTINGS
) -> Dialect:
    """The dialect `name` over a tokenizer that knows its tags, under one of its join rules (its own when None).

    Raises DialectError for an unknown name, option or join.
    """
    cls = dialect_class(name)
    chosen: Any = join or cls.joins[0]
    if chosen not in cls.joins:
        raise DialectError(f"dialect.join={join} does not go with dialect {cls.name}: it has {', '.join(cls.joins)}")
    return cls(tokens, chosen, options)
