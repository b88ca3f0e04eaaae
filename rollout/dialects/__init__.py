"""One file a dialect; `make_dialect` finds it by name."""

from rollout.dialects.base import Dialect, DialectError
from rollout.dialects.dc_cot import DcCot
from rollout.dialects.multiverse import Multiverse
from rollout.dialects.npr import Npr
from rollout.dialects.parallel_r1 import ParallelR1
from rollout.dialects.sequential import Sequential
from rollout.dialects.tagged import Tagged
from rollout.dialects.threadweaver import ThreadWeaver
from rollout.errors import nearest
from rollout.tokens import Tokens

DIALECTS: dict[str, type[Sequential] | type[Tagged]] = {
    d.name: d for d in (Sequential, ThreadWeaver, Multiverse, Npr, ParallelR1, DcCot)
}


def dialect_class(name: str) -> type[Sequential] | type[Tagged]:
    """The class called `name`; its `tags` are what the tokenizer must know. Raises DialectError, naming the nearest."""
    if name not in DIALECTS:
        near = nearest(name, DIALECTS)
        hint = f"did you mean {near!r}? " if near else ""
        raise DialectError(f"unknown dialect {name!r}; {hint}(known: {', '.join(DIALECTS)})")
    return DIALECTS[name]


def make_dialect(name: str, tokens: Tokens) -> Dialect:
    """The dialect called `name` over these tokens. Raises DialectError (unknown) or TagError (a tag is no token)."""
    return dialect_class(name)(tokens)
