"""A worked solution before any dialect: text and parallel blocks that a dialect knows how to write down."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """Independent pieces of work: (outline, body) of each thread, in order.

    `conclusion` is what the parent says about them right after the join, in dialects that have a place for it; the
    others write it as text that follows the block. Dialects without a plan leave the outlines out.

    >>> Block((("a", "a345"), ("b", "b789")))
    """

    threads: tuple[tuple[str, str], ...]
    conclusion: str = ""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Reasoning pieces in order, then the answer text that follows the reasoning.

    >>> Demonstration(("Split it. ", Block((("dx", " 36"), ("dy", " 81")))), "117")
    """

    reasoning: tuple[str | Block, ...]
    answer: str
