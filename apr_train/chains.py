"""Who sees whom in one packed row: chains of positions, each with what all of its tokens see before it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apr_train.packing import Segments

Ints = NDArray[np.int64]
Span = tuple[int, int]
"""Packed positions start..end - 1."""


@dataclass(frozen=True)
class Chain:
    """Queries `start:end`, causal among themselves, which also see every position of the spans in `prefix`.

    With `steps` (one per query, ascending) they are not causal: each sees itself and those of strictly smaller step.
    """

    start: int
    end: int
    prefix: tuple[Span, ...] = ()
    steps: tuple[int, ...] | None = None

    @property
    def queries(self) -> int:
        return self.end - self.start

    @property
    def keys(self) -> int:
        return self.queries + sum(end - start for start, end in self.prefix)

    @property
    def area(self) -> int:
        return self.queries * self.keys


@dataclass(frozen=True, eq=False)
class ChainTable:
    """Chains as a table for masks that are looked up: i sees j exactly when `seen_CA[chain_N[i], atom_N[j]]`, or both
    are of one chain and `step_N[j] < step_N[i]`, or i is j. Atoms are the spans that no chain tells apart.

    chain_N, atom_N, step_N: int64 (N,); seen_CA: bool (chains, atoms).
    """

    chain_N: Ints
    atom_N: Ints
    step_N: Ints
    seen_CA: NDArray[np.bool_]


def trie_chains(segments: Segments) -> list[Chain]:
    """One chain per leaf: each segment joined to the first child, which lies directly after it."""
    chains: list[Chain] = []
    chain_of: list[int] = []
    ends = segments.end_S.tolist()
    for start, end, parent in zip(segments.start_S.tolist(), ends, segments.parent_S.tolist(), strict=True):
        if parent < 0:
            chains.append(Chain(start, end))
        elif start == ends[parent]:
            trunk = chains.pop()
            chains.append(Chain(trunk.start, end, trunk.prefix))
        else:
            above = chains[chain_of[parent]]
            chains.append(Chain(start, end, (*above.prefix, (above.start, ends[parent]))))
        chain_of.append(len(chains) - 1)
    return chains


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same positions in as few spans as possible, in order; empty and overlapping spans are fine.

    >>> merged([(4, 6), (0, 2), (2, 3), (9, 9)])
    ((0, 3), (4, 6))
    """
    found: list[Span] = []
    for start, end in sorted(spans):
        if start == end:
            continue
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)


def shifted(chain: Chain, by: int) -> Chain:
    """The chain in a row that has `by` more positions in front."""
    prefix = tuple((start + by, end + by) for start, end in chain.prefix)
    return Chain(chain.start + by, chain.end + by, prefix, chain.steps)


def chain_table(chains: Sequence[Chain], tokens: int) -> ChainTable:
    """The table of chains that cover each of `tokens` positions once."""
    chain_N, step_N = np.zeros(tokens, dtype=np.int64), np.zeros(tokens, dtype=np.int64)
    starts = np.zeros(tokens + 1, dtype=bool)
    for c, chain in enumerate(chains):
        chain_N[chain.start : chain.end] = c
        step_N[chain.start : chain.end] = np.arange(chain.queries) if chain.steps is None else chain.steps
        for span in (*chain.prefix, (chain.start, chain.end)):
            starts[list(span)] = True
    starts[0] = True
    atom_N = np.cumsum(starts[:tokens]) - 1
    seen_CA = np.zeros((len(chains), int(atom_N[-1]) + 1), dtype=bool)
    for c, chain in enumerate(chains):
        for start, end in chain.prefix:
            seen_CA[c, atom_N[start] : atom_N[end - 1] + 1] = True
    return ChainTable(chain_N, atom_N, step_N, seen_CA)
