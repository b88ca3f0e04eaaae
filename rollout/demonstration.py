"""A worked solution before any dialect: text and parallel blocks that a dialect knows how to write down."""

from dataclasses import dataclass
from typing import Literal

Pieces = tuple["str | Block", ...]
"""Text and blocks in order."""


@dataclass(frozen=True, slots=True)
class Block:
    """Independent pieces of work: (outline, body) of each thread, in order. A body is text, or text and inner blocks.

    `conclusion` is what the parent says about them right after the join, in dialects that have a place for it; the
    others write it as text that follows the block. Dialects without a plan leave the outlines out. `kind`: all threads
    are parts of the work ("and"), or attempts at the same of which the first success ends the block ("or").

    >>> Block((("a", "a345"), ("b", "b789")))
    """

    threads: tuple[tuple[str, "str | Pieces"], ...]
    conclusion: str = ""
    kind: Literal["and", "or"] = "and"

    def bodies(self) -> list[Pieces]:
        """Every thread's body as pieces."""
        return [(body,) if isinstance(body, str) else body for _, body in self.threads]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Reasoning pieces in order, then the answer text that follows the reasoning.

    >>> Demonstration(("Split it. ", Block((("dx", " 36"), ("dy", " 81")))), "117")
    """

    reasoning: Pieces
    answer: str
