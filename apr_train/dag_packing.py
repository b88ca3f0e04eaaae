"""Packs calls into one row, also those whose context is no flat sequence: there each segment is computed once."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from apr_train.chains import Chain, Ints, Span, merged, shifted, trie_chains
from apr_train.packing import IGNORE, PackedTrie, PackingError, pack
from apr_train.visibility import sight
from rollout.trajectory import Trajectory

TILE = 256
"""Of a synchronous block about so many positions share one dense mask; what lies before them they see whole."""


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryCall:
    """One call of a stitched or synchronous trajectory: `trajectory.calls[index]`."""

    trajectory: Trajectory
    index: int


@dataclass(frozen=True, eq=False)
class PackedCalls:
    """One packed row of N positions; see `pack_views` for an example.

    input_ids, position_ids, shift_labels: int64 (N,), as in PackedTrie. `chains` cover every position once and say who
    sees whom. `where[r]`: int64 (sampled tokens of call r,), so that `logps[where[r]]` are their log-probabilities;
    where calls share a position, their gradients add up. `raw_tokens`: input positions of all calls, shared ones
    counted each time. `trie`: the same as a trie, where all of it is one.
    """

    input_ids: Tensor
    position_ids: Tensor
    shift_labels: Tensor
    chains: tuple[Chain, ...]
    where: tuple[Tensor, ...]
    raw_tokens: int
    trie: PackedTrie | None = None

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
        return _with_where(views, tuple(empty if call is None else next(found) for call in calls))
    contexts = [context_lengths[r] for r in flat]
    trie = _of_trie(pack([rows[r] for r in flat], contexts, [trees[r] for r in flat]), contexts)
    by = trie.unique_tokens
    places = iter(trie.where), (index + by for index in views.where)
    return PackedCalls(
        input_ids=torch.cat([trie.input_ids, views.input_ids]),
        position_ids=torch.cat([trie.position_ids, views.position_ids]),
        shift_labels=torch.cat([trie.shift_labels, views.shift_labels]),
        chains=(*trie.chains, *(shifted(chain, by) for chain in views.chains)),
        where=tuple(next(places[call is not None]) for call in calls),
        raw_tokens=trie.raw_tokens + views.raw_tokens,
    )


def _of_trie(trie: PackedTrie, contexts: Sequence[int]) -> PackedCalls:
    where = tuple(index[context - 1 :] for index, context in zip(trie.where, contexts, strict=True))
    chains = tuple(trie_chains(trie.segments))
    return PackedCalls(trie.input_ids, trie.position_ids, trie.shift_labels, chains, where, trie.raw_tokens, trie)


def _with_where(packed: PackedCalls, where: tuple[Tensor, ...]) -> PackedCalls:
    ids, positions, labels = packed.input_ids, packed.position_ids, packed.shift_labels
    return PackedCalls(ids, positions, labels, packed.chains, where, packed.raw_tokens)


def pack_views(calls: Sequence[TrajectoryCall], trees: Sequence[int] | None = None) -> PackedCalls:
    """Packs calls of stitched and synchronous trajectories, each segment once however many calls see it.

    Segments of different trajectories share their place where ids, position and all they see agree (within one of
    `trees`, default all in one), as the prompt of a group does; two equal threads of one trajectory do not, since what
    follows them sees both. The last token before a fork may have to predict several tokens: the first label is its own,
    each other one gets a copy of it that sees the same. Two calls of one trajectory never share that label.

    Raises PackingError for nothing to pack, a token id outside [0, 2**31), a call without context, a context that is
    not all its segment descends from, and as `sight` does.

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
    graph = _Graph()
    readers: dict[tuple[int, int], _Reader] = {}
    targets: list[_Target | None] = []
    for call, tree in zip(calls, [0] * len(calls) if trees is None else trees, strict=True):
        whose = (id(call.trajectory), tree)
        if whose not in readers:
            readers[whose] = _Reader(graph, call.trajectory, tree)
        targets.append(readers[whose].target(call.index))
    if not graph.nodes:
        raise PackingError("nothing to pack: give at least one call that sampled a token")
    chains = _lay_out(graph, {target.last for target in targets if target})
    return _labelled(graph, chains, targets, raw=sum(target.raw for target in targets if target))


@dataclass(slots=True)
class _Node:
    """A segment with a place of its own: what it holds, sees (node numbers), and, once laid out, where it lies."""

    ids: tuple[int, ...]
    start: int
    sees: frozenset[int]
    group: int
    at: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(slots=True)
class _Group:
    """Nodes whose tokens see each other's earlier steps: the threads of a synchronous block, or one node alone."""

    nodes: list[int]
    begin: int = 0
    steps: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # of its positions, ascending


@dataclass(slots=True)
class _Graph:
    nodes: list[_Node] = field(default_factory=list[_Node])
    groups: list[_Group] = field(default_factory=list[_Group])
    found: dict[Hashable, int] = field(default_factory=dict[Hashable, int])
    """The group of each content."""

    def group(self, key: Hashable, contents: Sequence[tuple[tuple[int, ...], int]], sees: frozenset[int]) -> list[int]:
        """The nodes of a group, made when there is none of this content yet; `contents`: (ids, start) of each node."""
        if key not in self.found:
            self.found[key] = len(self.groups)
            self.groups.append(_Group(list(range(len(self.nodes), len(self.nodes) + len(contents)))))
            self.nodes += [_Node(ids, start, sees, self.found[key]) for ids, start in contents]
        return self.groups[self.found[key]].nodes

    def spans(self, nodes: Iterable[int]) -> tuple[Span, ...]:
        """Where these nodes lie."""
        found: list[Span] = []
        for node in nodes:
            at = self.nodes[node].at
            edges = [0, *(np.flatnonzero(np.diff(at) != 1) + 1).tolist(), len(at)]
            found += [(int(at[a]), int(at[b - 1]) + 1) for a, b in pairwise(edges) if a < b]
        return merged(found)


@dataclass(frozen=True, slots=True)
class _Target:
    """What a call trains: node `last`'s end predicts `label`, the `turn`-th such call of its trajectory; then the
    tokens of `node` predict each other."""

    last: int
    label: int
    turn: int
    node: int
    raw: int


class _Reader:
    """Finds the nodes of one trajectory, and makes those that no trajectory before it had."""

    def __init__(self, graph: _Graph, trajectory: Trajectory, tree: int) -> None:
        self.graph, self.trajectory, self.tree = graph, trajectory, tree
        self.sight = sight(trajectory)
        self.node_of: dict[int, int] = {}
        self.met: Counter[Hashable] = Counter()

    def target(self, index: int) -> _Target | None:
        """What call `index` trains; None when it sampled nothing."""
        call, segments = self.trajectory.calls[index], self.trajectory.segments
        ids, where = segments[call.sampled].ids, f"{self.trajectory.problem_id}, call {index}"
        if not ids:
            return None
        seen = [s for s in call.context if segments[s].ids]
        if not seen:
            raise PackingError(f"{where} has no context: give it a prompt of at least one token")
        above = {s for s in self.sight.above[call.sampled] if segments[s].ids}
        if set(seen) != above or len(set(seen)) != len(seen):
            raise PackingError(f"{where}: its context is not all that its sampled segment descends from, once each")
        self._find(call.sampled)
        last = self.node_of[seen[-1]]
        raw = sum(len(segments[s].ids) for s in seen) + len(ids) - 1
        return _Target(last, ids[0], self._turn((last, ids[0])), self.node_of[call.sampled], raw)

    def _find(self, segment: int) -> None:
        """Sees to it that the segment and all it sees have nodes."""
        if segment in self.node_of:
            return
        whole = self.sight.sees[segment]
        for seen in sorted(whole - self.node_of.keys()):
            self._find(seen)
        sees = frozenset(self.node_of[seen] for seen in whole)
        segments = self.trajectory.segments
        together = [s for s in self.sight.blocks.get(segment, (segment,)) if segments[s].ids]
        contents = tuple((segments[s].ids, self.sight.starts[s]) for s in together)
        for ids, _ in contents:
            if min(ids) < 0 or max(ids) >= 2**31:
                raise PackingError(f"{self.trajectory.problem_id} holds a token id outside [0, 2**31)")
        key = (self.tree, contents, sees)
        nodes = self.graph.group((key, self._turn(key)), contents, sees)
        self.node_of.update(zip(together, nodes, strict=True))

    def _turn(self, key: Hashable) -> int:
        """How often this trajectory had this key before."""
        self.met[key] += 1
        return self.met[key] - 1


def _depth_first(graph: _Graph) -> list[int]:
    """Groups in packed order: all that one sees before it, and where possible directly before it."""
    groups = range(len(graph.groups))
    waits_for = [{graph.nodes[seen].group for seen in graph.nodes[group.nodes[0]].sees} for group in graph.groups]
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


def _lay_out(graph: _Graph, predicting: set[int]) -> list[Chain]:
    """Gives every node its positions, one group after the other, and says what they see.

    The last token of a node that nothing sees and that predicts nothing is no input, and gets no position.
    """
    needed = predicting.union(*(node.sees for node in graph.nodes))
    chains: list[Chain] = []
    tail = -1  # the node that ends the last chain, when one can be continued there
    begin = 0
    for number in _depth_first(graph):
        group = graph.groups[number]
        first, sees = group.nodes[0], graph.nodes[group.nodes[0]].sees
        group.begin = begin
        if len(group.nodes) > 1:
            _interleave(graph, group)
            chains += _tiles(group, graph.spans(sees))
            tail = -1
        else:
            size = len(graph.nodes[first].ids) - (first not in needed)
            group.steps = np.arange(size)
            graph.nodes[first].at = begin + group.steps
            if tail >= 0 and sees == graph.nodes[tail].sees | {tail}:
                chains[-1] = Chain(chains[-1].start, begin + size, chains[-1].prefix)
            elif size:
                chains.append(Chain(begin, begin + size, graph.spans(sees)))
            tail = first if size else tail
        begin += len(group.steps)
    return chains


def _interleave(graph: _Graph, group: _Group) -> None:
    """Step by step, and thread by thread within a step: what a token sees of its block lies before its step."""
    steps = np.concatenate([np.arange(len(graph.nodes[node].ids)) for node in group.nodes])
    order = np.argsort(steps, kind="stable")
    group.steps = steps[order]
    at = np.empty(len(steps), dtype=np.int64)
    at[order] = group.begin + np.arange(len(steps))
    ends = np.cumsum([len(graph.nodes[node].ids) for node in group.nodes])
    for node, own in zip(group.nodes, np.split(at, ends[:-1]), strict=True):
        graph.nodes[node].at = own


def _tiles(group: _Group, prefix: tuple[Span, ...]) -> Iterable[Chain]:
    """Whole steps, about TILE positions each."""
    low = 0
    while low < len(group.steps):
        high = int(np.searchsorted(group.steps, group.steps[min(low + TILE, len(group.steps)) - 1], side="right"))
        before = merged((*prefix, (group.begin, group.begin + low)))
        yield Chain(group.begin + low, group.begin + high, before, tuple(group.steps[low:high].tolist()))
        low = high


def _labelled(graph: _Graph, chains: list[Chain], targets: Sequence[_Target | None], raw: int) -> PackedCalls:
    """Sets the labels, copies positions that need a second one, and says where each call's predictions lie."""
    nodes, laid_out = graph.nodes, sum(len(group.steps) for group in graph.groups)
    places: dict[tuple[int, int, int], int] = {}
    copies: list[int] = []
    taken: set[int] = set()
    for target in targets:
        if target is None or (target.last, target.label, target.turn) in places:
            continue
        copied = target.last in taken
        place = laid_out + len(copies) if copied else int(nodes[target.last].at[-1])
        places[target.last, target.label, target.turn] = place
        taken.add(target.last)
        if copied:
            copies.append(target.last)
            chains.append(Chain(place, place + 1, _seen_by_end(graph, target.last)))
    ids = np.empty(laid_out + len(copies), dtype=np.int64)
    positions, labels = ids.copy(), np.full_like(ids, IGNORE)
    for node in nodes:
        ids[node.at] = node.ids[: len(node.at)]
        positions[node.at] = node.start + np.arange(len(node.at))
    for place, node in enumerate(copies, laid_out):
        ids[place], positions[place] = nodes[node].ids[-1], nodes[node].start + len(nodes[node].ids) - 1
    where: list[Ints] = []
    for target in targets:
        if target is None:
            where.append(np.empty(0, dtype=np.int64))
            continue
        node = nodes[target.node]
        where.append(np.array([places[target.last, target.label, target.turn], *node.at[: len(node.ids) - 1]]))
        labels[where[-1]] = node.ids
    return PackedCalls(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        shift_labels=torch.from_numpy(labels),
        chains=tuple(chains),
        where=tuple(map(torch.from_numpy, where)),
        raw_tokens=raw,
    )


def _seen_by_end(graph: _Graph, number: int) -> tuple[Span, ...]:
    """What the last token of a node sees but itself."""
    node = graph.nodes[number]
    group = graph.groups[node.group]
    earlier = int(np.searchsorted(group.steps, len(node.ids) - 1))
    return merged((*graph.spans(node.sees), (group.begin, group.begin + earlier)))
