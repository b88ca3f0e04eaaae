"""Packs calls into one row, also those whose context is no flat sequence: there each segment is computed once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from apr_train.chains import Chain, Ints, Span, merged, shifted, trie_chains
from apr_train.dag_nodes import Graph, Node, Reader, Target
from apr_train.packing import IGNORE, PackedTrie, PackingError, pack
from rollout.trajectory import Trajectory

TILE = 256
"""Of a synchronous block about so many positions share one dense mask; what lies before them they see whole."""


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryCall:
    """One call of a trajectory that its ids alone do not describe: `trajectory.calls[index]`."""

    trajectory: Trajectory
    index: int


@dataclass(frozen=True, eq=False)
class PackedCalls:
    """One packed row of N positions; see `pack_views` for an example.

    input_ids, position_ids, shift_labels: int64 (N,), as in PackedTrie. `chains` cover every position once and say who
    sees whom. `where[r]`: int64 (sampled tokens of call r,), so that `logps[where[r]]` are their log-probabilities;
    where calls share a position, their gradients add up. `raw_tokens`: input positions of all calls, shared ones
    counted each time. `trie`: the same as a trie, where all of it is one. threads: int64 (N,), the number of each
    position's thread, where threads have vectors; None: no position needs one.
    """

    input_ids: Tensor
    position_ids: Tensor
    shift_labels: Tensor
    chains: tuple[Chain, ...]
    where: tuple[Tensor, ...]
    raw_tokens: int
    trie: PackedTrie | None = None
    threads: Tensor | None = None

    @property
    def unique_tokens(self) -> int:
        """N, the positions that are computed."""
        return len(self.input_ids)


def pack_calls(
    rows: Sequence[Sequence[int]],
    context_lengths: Sequence[int],
    calls: Sequence[TrajectoryCall | None],
    trees: Sequence[int] | None = None,
) -> PackedCalls:
    """Packs causal rows as `pack` does (where `calls[r]` is None) and the others as `pack_views` does, side by side.

    Raises PackingError as they do.
    """
    trees = [0] * len(rows) if trees is None else trees
    flat = [r for r, call in enumerate(calls) if call is None]
    viewed = [(call, trees[r]) for r, call in enumerate(calls) if call is not None]
    if not viewed:
        return _of_trie(pack(rows, context_lengths, trees), context_lengths)
    views = pack_views([call for call, _ in viewed], [tree for _, tree in viewed])
    long = [r for r in flat if len(rows[r]) > 1]  # a row of one token has nothing to pack
    if not long:
        empty = torch.empty(0, dtype=torch.long)
        found = iter(views.where)
        return replace(views, where=tuple(empty if call is None else next(found) for call in calls))
    contexts = [context_lengths[r] for r in flat]
    trie = _of_trie(pack([rows[r] for r in flat], contexts, [trees[r] for r in flat]), contexts)
    by = trie.unique_tokens
    places = iter(trie.where), (index + by for index in views.where)
    threads = None if views.threads is None else torch.cat([torch.zeros_like(trie.input_ids), views.threads])
    return PackedCalls(
        input_ids=torch.cat([trie.input_ids, views.input_ids]),
        position_ids=torch.cat([trie.position_ids, views.position_ids]),
        shift_labels=torch.cat([trie.shift_labels, views.shift_labels]),
        chains=(*trie.chains, *(shifted(chain, by) for chain in views.chains)),
        where=tuple(next(places[call is not None]) for call in calls),
        raw_tokens=trie.raw_tokens + views.raw_tokens,
        threads=threads,
    )


def _of_trie(trie: PackedTrie, contexts: Sequence[int]) -> PackedCalls:
    where = tuple(index[context - 1 :] for index, context in zip(trie.where, contexts, strict=True))
    chains = tuple(trie_chains(trie.segments))
    return PackedCalls(trie.input_ids, trie.position_ids, trie.shift_labels, chains, where, trie.raw_tokens, trie)


def pack_views(calls: Sequence[TrajectoryCall], trees: Sequence[int] | None = None) -> PackedCalls:
    """Packs calls of stitched and synchronous trajectories, each segment once however many calls see it.

    Segments of different trajectories share their place where ids, position, all they see and, where threads have
    vectors, the thread's number agree (within one of `trees`, default all in one), as the prompt of a group does; two
    equal threads of one trajectory do not, since what follows them sees both. The last token before a fork may have to
    predict several tokens: the first label is its own, each other one gets a copy of it that sees the same. Two calls
    of one trajectory never share that label.

    Calls of a synchronous trajectory's root read flat ids, and the threads before them once more as such.

    Raises PackingError for nothing to pack, and as `Reader` does.

    Example: prompt 7 8; two threads, 1 and 2 3, sampled from it, and a forced 4 that sees both and predicts 5:

    >>> from rollout.trajectory import Call, Segment
    >>> texts = [("sampled", (1,), (0,)), ("sampled", (2, 3), (0,)), ("forced", (4,), (1, 2)), ("sampled", (5,), (3,))]
    >>> segments = [Segment(o, ids, (0.0,) * len(ids) if o == "sampled" else None, up) for o, ids, up in texts]
    >>> asked = (Call((0,), 1, "join"), Call((0,), 2, "join"), Call((0, 1, 2, 3), 4, "final"))
    >>> prompt = Segment("prompt", (7, 8))
    >>> one = Trajectory("p", "multiverse", (prompt, *segments), asked, "answered", attention="stitched")
    >>> row = pack_views([TrajectoryCall(one, index) for index in range(3)])
    >>> row.input_ids.tolist(), row.position_ids.tolist()
    ([7, 8, 1, 2, 3, 4, 8], [0, 1, 2, 2, 3, 4, 1])
    >>> row.shift_labels.tolist(), [index.tolist() for index in row.where]
    ([-100, 1, -100, 3, -100, 5, 2], [[1], [6, 3], [5]])
    >>> row.chains[1]  # the second thread sees the prompt alone
    Chain(start=3, end=5, prefix=((0, 2),), steps=None)
    """
    graph = Graph()
    readers: dict[tuple[int, int], Reader] = {}
    targets: list[Target | None] = []
    for call, tree in zip(calls, [0] * len(calls) if trees is None else trees, strict=True):
        whose = (id(call.trajectory), tree)
        if whose not in readers:
            readers[whose] = Reader(graph, call.trajectory, tree)
        targets.append(readers[whose].target(call.index))
    if not graph.nodes:
        raise PackingError("nothing to pack: give at least one call that sampled a token")
    chains = _lay_out(graph, {target.last for target in targets if target})
    return _labelled(graph, chains, targets)


def _depth_first(graph: Graph) -> list[int]:
    """Groups in packed order: all that one sees before it, and where possible directly before it."""
    groups = range(len(graph.groups))
    waits_for = [{graph.nodes[seen].group for seen in graph.nodes[group[0]].sees} for group in graph.groups]
    waiting = [len(before) for before in waits_for]
    after: list[list[int]] = [[] for _ in groups]
    for group in groups:
        for before in waits_for[group]:
            after[before].append(group)
    order: list[int] = []
    stack = [group for group in reversed(groups) if not waiting[group]]
    while stack:
        order.append(stack.pop())
        for group in reversed(after[order[-1]]):
            waiting[group] -= 1
            if not waiting[group]:
                stack.append(group)
    return order


def _lay_out(graph: Graph, predicting: set[int]) -> list[Chain]:
    """Gives every node its positions, one group after the other, and says what they see.

    The last token of a node that nothing sees and that predicts nothing is no input, and gets no position.
    """
    needed = predicting.union(*(node.sees for node in graph.nodes))
    chains: list[Chain] = []
    tail = -1  # the node that ends the last chain, when one can be continued there
    begin = 0
    for number in _depth_first(graph):
        group = graph.groups[number]
        first = graph.nodes[group[0]]
        if len(group) > 1:
            steps = _interleave([graph.nodes[node] for node in group], begin)
            chains += _tiles(steps, begin, graph.spans(first.sees))
            begin, tail = begin + len(steps), -1
            continue
        size = len(first.ids) - (group[0] not in needed)
        if not size:
            continue
        first.at = begin + np.arange(size)
        if tail >= 0 and first.sees == graph.nodes[tail].sees | {tail}:
            chains[-1] = Chain(chains[-1].start, begin + size, chains[-1].prefix)
        else:
            chains.append(Chain(begin, begin + size, graph.spans(first.sees)))
        begin, tail = begin + size, group[0]
    return chains


def _interleave(nodes: Sequence[Node], begin: int) -> Ints:
    """Lays nodes out from `begin`, step by step and thread by thread within a step, so that what a token sees of its
    block lies before its step; the step of each position."""
    steps = np.concatenate([np.arange(len(node.ids)) for node in nodes])
    order = np.argsort(steps, kind="stable")
    at = np.empty(len(steps), dtype=np.int64)
    at[order] = begin + np.arange(len(steps))
    ends = np.cumsum([len(node.ids) for node in nodes])
    for node, own in zip(nodes, np.split(at, ends[:-1]), strict=True):
        node.at = own
    return steps[order]


def _tiles(steps: Ints, begin: int, prefix: tuple[Span, ...]) -> Iterable[Chain]:
    """Whole steps, about TILE positions each."""
    low = 0
    while low < len(steps):
        high = int(np.searchsorted(steps, steps[min(low + TILE, len(steps)) - 1], side="right"))
        before = merged((*prefix, (begin, begin + low)))
        yield Chain(begin + low, begin + high, before, tuple(steps[low:high].tolist()))
        low = high


def _labelled(graph: Graph, chains: list[Chain], targets: Sequence[Target | None]) -> PackedCalls:
    """Sets the labels, copies positions that need a second one, and says where each call's predictions lie."""
    nodes, laid_out = graph.nodes, sum(len(node.at) for node in graph.nodes)
    places: dict[tuple[int, int, int], int] = {}
    copies: list[Node] = []
    taken: set[int] = set()
    where: list[Ints] = []
    for target in targets:
        if target is None:
            where.append(np.empty(0, dtype=np.int64))
            continue
        last, node = nodes[target.last], nodes[target.node]
        asked = (target.last, node.ids[0], target.turn)
        if asked not in places and target.last not in taken:
            places[asked] = int(last.at[-1])
        elif asked not in places:
            places[asked] = laid_out + len(copies)
            copies.append(last)
            before = (*graph.spans(last.sees), (int(last.at[0]), int(last.at[-1])))
            chains.append(Chain(places[asked], places[asked] + 1, merged(before)))
        taken.add(target.last)
        where.append(np.array([places[asked], *node.at[: len(node.ids) - 1]]))
    ids = np.empty(laid_out + len(copies), dtype=np.int64)
    positions, labels, threads = ids.copy(), np.full_like(ids, IGNORE), np.zeros_like(ids)
    for node in nodes:
        threads[node.at] = node.thread
        ids[node.at] = node.ids[: len(node.at)]
        positions[node.at] = node.start + np.arange(len(node.at))
    for place, node in enumerate(copies, laid_out):
        ids[place], positions[place], threads[place] = node.ids[-1], node.start + len(node.ids) - 1, node.thread
    for target, index in zip(targets, where, strict=True):
        labels[index] = nodes[target.node].ids if target else IGNORE
    return PackedCalls(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        shift_labels=torch.from_numpy(labels),
        chains=tuple(chains),
        where=tuple(map(torch.from_numpy, where)),
        raw_tokens=sum(target.raw for target in targets if target),
        threads=torch.from_numpy(threads) if threads.any() else None,
    )
