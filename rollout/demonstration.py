"""A worked solution before any dialect: text and parallel blocks that a dialect knows how to write down."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """Independent pieces of work: (outline, body) of each thread, in order.

    >>> Block((("a", "a345"), ("b", "b789")))
    """

    threads: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Reasoning pieces in order, then the answer text that follows the reasoning.

    >>> Demonstration(("Split it. ", Block((("dx", " 36"), ("dy", " 81")))), "117")
    """

    reasoning: tuple[str | Block, ...]
    answer: str
