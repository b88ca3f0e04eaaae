"""A worked solution before any dialect: text and parallel blocks that a dialect knows how to write down."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Pieces = tuple["str | Block", ...]
"""Text and blocks in order."""


@dataclass(frozen=True, slots=True)
class Block:
    """Independent pieces of work: (outline, body) of each thread, in order. A body is text, or text and inner blocks.

    `conclusion` is what the parent says about them right after the join, in dialects that have a place for it; the
    others write it as text that follows the block. Dialects without a plan leave the outlines out. `kind`: all threads
    are parts of the work ("and"), or attempts at the same of which the first success ends the block ("or"). `tasks`:
    (prompt, answer) of each thread, for dialects whose threads see nothing else and give back nothing else.

    >>> Block((("a", "a345"), ("b", "b789")))
    """

    threads: tuple[tuple[str, "str | Pieces"], ...]
    conclusion: str = ""
    kind: Literal["and", "or"] = "and"
    tasks: tuple[tuple[str, str], ...] = ()

    def bodies(self) -> list[Pieces]:
        """Every thread's body as pieces."""
        return [(body,) if isinstance(body, str) else body for _, body in self.threads]

    def in_sequence(self) -> str:
        """The bodies one after the other, a line each, then the conclusion.

        >>> Block((("a", "a345"), ("b", "b789"))).in_sequence()
        'a345\\nb789\\n'
        """
        texts = ["".join(p if isinstance(p, str) else p.in_sequence() for p in body) for body in self.bodies()]
        return "".join(f"{text}\n" for text in texts) + self.conclusion

    def of_width(self, width: int) -> "Block | str":
        """The same work in exactly `width` threads, neighbours put together; in sequence when it has fewer parts.

        >>> Block((("a", "a3"), ("b", "b7"), ("c", "c1"))).of_width(2).threads
        (('a, b', 'a3\\nb7'), ('c', 'c1'))
        """
        count = len(self.threads)
        if count == width:
            return self
        if count < width:
            return self.in_sequence()
        cuts = [count * k // width + (count * k % width > 0) for k in range(width + 1)]
        groups = [Block(self.threads[low:high]) for low, high in pairwise(cuts)]
        outlines = [", ".join(outline for outline, _ in group.threads) for group in groups]
        bodies = [group.in_sequence().removesuffix("\n") for group in groups]
        return Block(tuple(zip(outlines, bodies, strict=True)), self.conclusion, self.kind)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Reasoning pieces in order, then the answer text that follows the reasoning.

    >>> Demonstration(("Split it. ", Block((("dx", " 36"), ("dy", " 81")))), "117")
    """

    reasoning: Pieces
    answer: str
