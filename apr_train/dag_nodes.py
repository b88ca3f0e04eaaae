"""The segments that calls read, as nodes that trajectories share where all that decides their keys agrees."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from apr_train.chains import Ints, Span, merged
from apr_train.packing import PackingError
from apr_train.visibility import Name, lockstep_blocks, sight
from rollout.trajectory import Call, Trajectory


@dataclass(slots=True)
class Node:
    """A segment as somebody read it: its ids, first position, its thread's number (0 where threads have no vectors),
    the nodes it sees whole, and, once laid out, where its tokens lie."""

    ids: tuple[int, ...]
    start: int
    thread: int
    sees: frozenset[int]
    group: int
    at: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(slots=True)
class Graph:
    """Nodes, each after all that it sees, in groups: the threads of a synchronous block, or one node alone.

    Nodes of one group see the same nodes whole, and of each other the tokens of strictly smaller index.
    """

    nodes: list[Node] = field(default_factory=list[Node])
    groups: list[list[int]] = field(default_factory=list[list[int]])
    found: dict[Hashable, int] = field(default_factory=dict[Hashable, int])
    """The group of each content."""

    def group(
        self, key: Hashable, contents: Sequence[tuple[tuple[int, ...], int, int]], sees: frozenset[int]
    ) -> list[int]:
        """The nodes of a group, made when none has this key yet; `contents`: (ids, start, thread) of each node."""
        if key not in self.found:
            self.found[key] = len(self.groups)
            self.groups.append(list(range(len(self.nodes), len(self.nodes) + len(contents))))
            self.nodes += [Node(*content, sees, self.found[key]) for content in contents]
        return self.groups[self.found[key]]

    def spans(self, nodes: Iterable[int]) -> tuple[Span, ...]:
        """Where these nodes lie. None is of a larger group: what follows one reads its threads as flat ids."""
        places = (self.nodes[node].at for node in nodes)
        return merged((int(at[0]), int(at[-1]) + 1) for at in places)


@dataclass(frozen=True, slots=True)
class Target:
    """What a call trains: the end of node `last` predicts the first token of `node`, then those predict each other.

    `turn`: how many calls of this trajectory ask the same node for the same token before. `raw`: the call's input
    positions.
    """

    last: int
    node: int
    turn: int
    raw: int


class Reader:
    """Finds the nodes of one trajectory, and makes those that no trajectory before it had."""

    def __init__(self, graph: Graph, trajectory: Trajectory, tree: int) -> None:
        """Raises PackingError for causal trajectories, whose calls are rows of ids, and as `lockstep_blocks` does."""
        if trajectory.attention not in ("stitched", "synchronous"):
            raise PackingError(f"{trajectory.problem_id}: {trajectory.attention} calls cannot be packed as views")
        self.graph, self.trajectory, self.tree = graph, trajectory, tree
        self.segments = trajectory.segments
        self.stitched = sight(trajectory) if trajectory.attention == "stitched" else None
        self.blocks = lockstep_blocks(trajectory) if self.stitched is None else {}
        self.node_of: dict[int, int] = {}
        self.claims: dict[Hashable, list[int]] = {}
        self.asked: Counter[tuple[int, int]] = Counter()

    def target(self, index: int) -> Target | None:
        """What call `index` trains; None when it sampled nothing.

        Raises PackingError for a call without context, a token id outside [0, 2**31), and a stitched context that is
        not all its segment descends from.
        """
        call = self.trajectory.calls[index]
        ids, where = self.segments[call.sampled].ids, f"{self.trajectory.problem_id}, call {index}"
        if not ids:
            return None
        seen = [s for s in call.context if self.segments[s].ids]
        if not seen:
            raise PackingError(f"{where} has no context: give it a prompt of at least one token")
        thread = self.segments[call.sampled].thread
        if self.stitched is not None:
            if sorted(seen) != sorted(self.stitched.sees[call.sampled]):
                raise PackingError(f"{where}: its context is not all that its sampled segment descends from, once each")
            last, node = self._by_descent(seen[-1]), self._by_descent(call.sampled)
        elif thread:
            last, node = self._in_lockstep(thread, call)
        else:
            *_, last, node = self._flat((*call.context, call.sampled))
        self.asked[last, ids[0]] += 1
        raw = sum(len(self.segments[s].ids) for s in seen) + len(ids) - 1
        return Target(last, node, self.asked[last, ids[0]] - 1, raw)

    def _by_descent(self, segment: int) -> int:
        """The node of a stitched segment; there is one, whoever reads it."""
        assert self.stitched is not None
        if segment not in self.node_of:
            whole = self.stitched.sees[segment]
            for seen in sorted(whole - self.node_of.keys()):
                self._by_descent(seen)
            sees = frozenset(self.node_of[seen] for seen in whole)
            (self.node_of[segment],) = self._group([(segment, self.stitched.starts[segment])], sees)
        return self.node_of[segment]

    def _flat(self, segments: Sequence[int]) -> list[int]:
        """The nodes of segments that are read as flat ids, empty ones left out."""
        nodes: list[int] = []
        start = 0
        for segment in segments:
            if self.segments[segment].ids:
                nodes += self._group([(segment, start)], frozenset(nodes))
                start += len(self.segments[segment].ids)
        return nodes

    def _in_lockstep(self, thread: Name, call: Call) -> tuple[int, int]:
        """The node that a synchronous thread read last, and that of what it then sampled."""
        block = self.blocks[thread]
        before = self._flat(block.before)
        fork = sum(len(self.segments[s].ids) for s in block.before)
        last, headers = dict[Name, int](), list[int]()
        asked: list[tuple[int, int]] = []
        for name, own, sampled in zip(block.names, block.headers, block.sampled, strict=True):
            start, above = fork + (name[1] - 1) * self.trajectory.stride, list(before)
            for segment in own:
                if self.segments[segment].ids:
                    above += self._group([(segment, start)], frozenset(above))
                    start += len(self.segments[segment].ids)
            last[name] = above[-1]
            headers += above[len(before) :]
            if self.segments[sampled].ids:
                asked.append((sampled, start))
        nodes = self._group(asked, frozenset((*before, *headers)))
        return last[thread], nodes[[sampled for sampled, _ in asked].index(call.sampled)]

    def _group(self, members: Sequence[tuple[int, int]], sees: frozenset[int]) -> list[int]:
        """The nodes of (segment, start) that see the same. Equal segments of one trajectory stay apart, since what
        follows them sees both; those of two trajectories meet."""
        numbered = self.trajectory.thread_vectors
        of = [(self.segments[segment], start) for segment, start in members]
        contents = tuple((each.ids, start, each.number if numbered else 0) for each, start in of)
        for ids, *_ in contents:
            if min(ids) < 0 or max(ids) >= 2**31:
                raise PackingError(f"{self.trajectory.problem_id} holds a token id outside [0, 2**31)")
        key = (self.tree, contents, sees)
        claims = self.claims.setdefault(key, [])
        if members[0][0] not in claims:
            claims.append(members[0][0])
        return self.graph.group((key, claims.index(members[0][0])), contents, sees)
