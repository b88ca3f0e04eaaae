"""Packs calls into one row: a trie keyed on (token, next token), so every shared prefix is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORE = -100
"""Label of a packed position that no row trains, as in PyTorch's cross entropy."""

Ints = NDArray[np.int64]


class PackingError(ValueError):
    """The rows cannot be packed; the message names the row and what to change."""


@dataclass(frozen=True, eq=False)
class Segments:
    """The trie's unary runs in packed (depth-first) order; every array has shape (S,).

    Segment `s` holds packed positions `start_S[s]:end_S[s]`, its first token lies at depth `depth_S[s]`, its parent is
    segment `parent_S[s]` (-1 for a root) and all that is below it ends at `exit_S[s]`: position j is an ancestor of
    position i, or i itself, exactly when `j <= i < exit` of j's segment. Of several children the one with the deepest
    leaf comes first, directly after its parent, so that a branch's path is a few contiguous spans.
    """

    start_S: Ints
    end_S: Ints
    parent_S: Ints
    depth_S: Ints
    exit_S: Ints


@dataclass(frozen=True, eq=False)
class PackedTrie:
    """One packed row of N positions; see `pack` for an example.

    input_ids, position_ids (the depth), shift_labels: int64 (N,). Labels are already shifted: position i predicts
    `shift_labels[i]`, or nothing where that is -100. `where[r]`: int64 (len(rows[r]) - 1,), the packed position of each
    input position of row r, so that `logps[where[r]]` are its log-probabilities; where rows share a position, their
    gradients add up. `raw_tokens`: input positions of all rows, shared ones counted each time.
    """

    input_ids: Tensor
    position_ids: Tensor
    shift_labels: Tensor
    segments: Segments
    where: tuple[Tensor, ...]
    raw_tokens: int

    @property
    def unique_tokens(self) -> int:
        """N, the positions that are computed; `raw_tokens / unique_tokens` bounds the speedup of packing."""
        return len(self.input_ids)


@dataclass(frozen=True, eq=False)
class _Trie:
    """Node i holds depths `low[i]:high[i]` of row `row[i]`, below node `parent[i]`; row r ends at node `leaf[r]`."""

    low: list[int]
    high: list[int]
    parent: list[int]
    row: list[int]
    leaf: list[int]


def pack(
    rows: Sequence[Sequence[int]], context_lengths: Sequence[int] | None = None, trees: Sequence[int] | None = None
) -> PackedTrie:
    """Packs token rows (context + sampled tokens, one row per call) into a forest with one label per position.

    A row's inputs are `row[:-1]` and its labels `row[1:]`. Two rows share a position as long as token and next token
    agree, so the token before a fork is stored once per branch and never needs two labels. The first
    `context_lengths[r]` (default 1) tokens of row r are no targets; `len(row)` makes a row that trains nothing. A row
    of one token has no input and takes no place. Rows share positions only within one of `trees` (default: all in one);
    where a loss sums over positions instead of rows, a tree per example keeps a label that two examples train twice.

    Raises PackingError for an empty row, a token id outside [0, 2**31), a context length outside [1, len(row)], another
    number of context lengths or trees than rows, and nothing to pack.

    Example: two calls that share the prompt 5 6 and differ in the token after it:

    >>> trie = pack([[5, 6, 7, 8], [5, 6, 9]], context_lengths=[2, 2])
    >>> trie.input_ids.tolist(), trie.position_ids.tolist()
    ([5, 6, 7, 6], [0, 1, 2, 1])
    >>> trie.shift_labels.tolist()
    [-100, 7, 8, 9]
    >>> [index.tolist() for index in trie.where], trie.raw_tokens, trie.unique_tokens
    ([[0, 1, 2], [0, 3]], 5, 4)
    """
    contexts = [1] * len(rows) if context_lengths is None else list(context_lengths)
    if len(contexts) != len(rows):
        raise PackingError(f"{len(rows)} rows but {len(contexts)} context lengths: give one per row")
    ids_R = [_checked(r, row, context) for r, (row, context) in enumerate(zip(rows, contexts, strict=True))]
    keys_R = [(ids[:-1] << 32) | ids[1:] for ids in ids_R]
    raw = sum(map(len, keys_R))
    if raw == 0:
        raise PackingError("nothing to pack: give at least one row of two tokens (one input, one label)")

    trees_R = [0] * len(rows) if trees is None else list(trees)
    if len(trees_R) != len(rows):
        raise PackingError(f"{len(rows)} rows but {len(trees_R)} trees: give one per row")
    trie = _build(keys_R, trees_R)
    order = _depth_first(trie)
    segments = _lay_out(trie, order)
    keys = np.concatenate([keys_R[trie.row[node]][trie.low[node] : trie.high[node]] for node in order])
    positions = np.concatenate([np.arange(trie.low[node], trie.high[node]) for node in order])
    where = _where(trie, order, segments)
    trained = np.zeros(len(keys), dtype=bool)
    for index, context in zip(where, contexts, strict=True):
        trained[index[context - 1 :]] = True
    return PackedTrie(
        input_ids=torch.from_numpy(keys >> 32),
        position_ids=torch.from_numpy(positions),
        shift_labels=torch.from_numpy(np.where(trained, keys & 0xFFFFFFFF, IGNORE)),
        segments=segments,
        where=tuple(map(torch.from_numpy, where)),
        raw_tokens=raw,
    )


def _checked(r: int, row: Sequence[int], context: int) -> Ints:
    ids = np.asarray(row, dtype=np.int64)
    if ids.ndim != 1 or not len(ids):
        raise PackingError(f"row {r} is empty: drop it, or give it at least one token")
    if ids.min() < 0 or ids.max() >= 2**31:
        raise PackingError(f"row {r} holds a token id outside [0, 2**31): check the tokenizer")
    if not 1 <= context <= len(ids):
        raise PackingError(f"row {r} has {len(ids)} tokens but context length {context}: it must be in [1, {len(ids)}]")
    return ids


def _build(keys_R: list[Ints], trees_R: Sequence[int]) -> _Trie:
    """Builds the compressed trie from sorted rows: a common prefix says where a row leaves its predecessor's path."""
    # Big-endian bytes compare like the non-negative integers they hold, so Python's sort runs at the speed of memcmp.
    bytes_R = [keys.astype(">i8").tobytes() for keys in keys_R]
    order = sorted((r for r, keys in enumerate(keys_R) if len(keys)), key=lambda r: (trees_R[r], bytes_R[r]))
    trie = _Trie([], [], [], [], [-1] * len(keys_R))

    def add(low: int, high: int, parent: int, row: int) -> int:
        for column, value in zip((trie.low, trie.high, trie.parent, trie.row), (low, high, parent, row), strict=True):
            column.append(value)
        return len(trie.low) - 1

    path: list[int] = []
    for previous, r in zip([-1, *order], order, strict=False):
        same_tree = bool(path) and trees_R[previous] == trees_R[r]
        shared = _common_prefix(keys_R[previous], keys_R[r]) if same_tree else 0
        while path and trie.low[path[-1]] >= shared:
            path.pop()
        if path and trie.high[path[-1]] > shared:
            lower = path[-1]
            path[-1] = add(trie.low[lower], shared, trie.parent[lower], trie.row[lower])
            trie.low[lower], trie.parent[lower] = shared, path[-1]
        if len(keys_R[r]) > shared:
            path.append(add(shared, len(keys_R[r]), path[-1] if path else -1, r))
            trie.leaf[r] = path[-1]
        else:  # sorted rows: one that ends inside its predecessor equals it
            trie.leaf[r] = trie.leaf[previous]
    return trie


def _common_prefix(left: Ints, right: Ints) -> int:
    length = min(len(left), len(right))
    differ = left[:length] != right[:length]
    return int(differ.argmax()) if differ.any() else length


def _depth_first(trie: _Trie) -> list[int]:
    """Node ids in packed order: parents first, and of several children the one with the deepest leaf first."""
    nodes = range(len(trie.low))
    deepest = list(trie.high)
    for node in sorted(nodes, key=lambda n: -trie.low[n]):
        if trie.parent[node] >= 0:
            deepest[trie.parent[node]] = max(deepest[trie.parent[node]], deepest[node])
    children: dict[int, list[int]] = {}
    for node in sorted(nodes, key=lambda n: (deepest[n], -trie.row[n])):
        children.setdefault(trie.parent[node], []).append(node)
    order, stack = [], children[-1]
    while stack:
        order.append(stack.pop())
        stack.extend(children.get(order[-1], []))
    return order


def _lay_out(trie: _Trie, order: list[int]) -> Segments:
    place = {node: s for s, node in enumerate(order)} | {-1: -1}
    depth_S = np.array([trie.low[node] for node in order])
    end_S = np.cumsum(np.array([trie.high[node] for node in order]) - depth_S)
    start_S = np.concatenate([[0], end_S[:-1]])
    parent_S = np.array([place[trie.parent[node]] for node in order])
    exit_S = end_S.copy()
    for s in reversed(range(len(order))):
        if parent_S[s] >= 0:
            exit_S[parent_S[s]] = max(exit_S[parent_S[s]], exit_S[s])
    return Segments(start_S, end_S, parent_S, depth_S, exit_S)


def _where(trie: _Trie, order: list[int], segments: Segments) -> list[Ints]:
    place = {node: s for s, node in enumerate(order)}
    paths: dict[int, Ints] = {-1: np.empty(0, dtype=np.int64)}
    for leaf in set(trie.leaf) - {-1}:
        spans, s = [], place[leaf]
        while s >= 0:
            spans.append(np.arange(segments.start_S[s], segments.end_S[s]))
            s = int(segments.parent_S[s])
        paths[leaf] = np.concatenate(spans[::-1])
    return [paths[leaf] for leaf in trie.leaf]
