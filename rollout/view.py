"""What one call sees: pieces of token ids, which earlier pieces each of them saw, and the position each starts at."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    """The context of a call, piece by piece, in an order in which every piece follows all that it sees.

    Tokens of piece i see the pieces `sees[i]` (sorted indices below i), their own earlier tokens, and nothing else; its
    first token has position `starts[i]`, the next one more. The sampled tokens see every piece; their first position is
    `end`. A piece may be empty. Two views that agree on a piece, on its position and, recursively, on all it sees agree
    on its keys and values: that is what an engine may keep.

    `threads`: where a model has a vector per thread, the number of each piece's thread in its block (from 1; 0: the
    root), and last that of the sampled tokens. Empty: all are the root's. Keys and values then depend on it too.

    Prompt 7 8, two threads that do not see each other, and a join that sees all; threads start together and the join
    after the longer one:

    >>> View(((7, 8), (1,), (2, 3), (4,)), ((), (0,), (0,), (0, 1, 2)), (0, 2, 2, 4)).end
    5
    """

    pieces: tuple[tuple[int, ...], ...]
    sees: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    threads: tuple[int, ...] = ()

    @classmethod
    def causal(cls, pieces: Sequence[tuple[int, ...]]) -> "View":
        """Every piece sees all before it, positions run on: an ordinary context that any engine can serve.

        >>> View.causal([(5, 6), (7,)])
        View(pieces=((5, 6), (7,)), sees=((), (0,)), starts=(0, 2))
        """
        starts = [0]
        for piece in pieces:
            starts.append(starts[-1] + len(piece))
        return cls(tuple(pieces), tuple(tuple(range(i)) for i in range(len(pieces))), tuple(starts[:-1]))

    @classmethod
    def stitched(
        cls, pieces: Sequence[tuple[int, ...]], parents: Sequence[Sequence[int]], threads: Sequence[int] = ()
    ) -> "View":
        """A piece sees its parents and, through them, all that they saw; it starts where the longest parent ends.

        >>> View.stitched([(7, 8), (1,), (2, 3), (4,)], [(), (0,), (0,), (1, 2)]).starts
        (0, 2, 2, 4)
        """
        sees: list[tuple[int, ...]] = []
        starts: list[int] = []
        for above in parents:
            sees.append(tuple(sorted({*above, *(seen for parent in above for seen in sees[parent])})))
            starts.append(max((starts[parent] + len(pieces[parent]) for parent in above), default=0))
        return cls(tuple(pieces), tuple(sees), tuple(starts), tuple(threads))

    @property
    def ids(self) -> list[int]:
        """All ids, piece after piece."""
        return [token for piece in self.pieces for token in piece]

    @property
    def end(self) -> int:
        """The position of the first sampled token."""
        return max((start + len(piece) for start, piece in zip(self.starts, self.pieces, strict=True)), default=0)

    @property
    def is_causal(self) -> bool:
        """Whether one flat sequence of the ids says all there is to say."""
        flat = View.causal(self.pieces)
        return (self.sees, self.starts) == (flat.sees, flat.starts) and not any(self.threads)
