"""What the segments of a trajectory see of each other, and where each starts: its `attention`, worked out."""

from collections.abc import Sequence
from dataclasses import dataclass

from apr_train.packing import PackingError
from rollout.trajectory import Segment, Trajectory


@dataclass(frozen=True, slots=True)
class Sight:
    """Of each segment of a trajectory, by its index.

    Its tokens see the segments `sees[s]` whole (none of them empty), their own segment's earlier tokens, and of the
    other segments in `blocks[s]`, if it is there, the tokens of strictly smaller index. The first has position
    `starts[s]`, the next one more. `blocks` holds the sampled segments of synchronous threads, each with all sampled
    segments of its block, itself included. `above[s]`: what s descends from by `parents`, empty segments included.

    >>> prompt, join = Segment("prompt", (7, 8)), Segment("forced", (4,), parents=(1, 2))
    >>> threads = [Segment("sampled", ids, (0.0,) * len(ids), (0,), (0, k)) for k, ids in enumerate(((1,), (2, 3)), 1)]
    >>> found = sight(Trajectory("p", "multiverse", (prompt, *threads, join), (), "answered", attention="stitched"))
    >>> found.starts, [sorted(seen) for seen in found.sees]
    ((0, 2, 2, 4), [[], [0], [0], [0, 1, 2]])
    """

    starts: tuple[int, ...]
    sees: tuple[frozenset[int], ...]
    blocks: dict[int, tuple[int, ...]]
    above: tuple[frozenset[int], ...]


def sight(trajectory: Trajectory) -> Sight:
    """Works out a stitched or synchronous trajectory.

    Raises PackingError for a causal one, and for synchronous threads that nest, sample more or less than once, or fork
    elsewhere than their siblings.
    """
    if trajectory.attention == "causal":
        raise PackingError(f"{trajectory.problem_id}: the calls of a causal trajectory are rows of ids, not views")
    segments = trajectory.segments
    above: list[frozenset[int]] = []
    starts: list[int] = []
    for segment in segments:
        above.append(frozenset(segment.parents).union(*(above[parent] for parent in segment.parents)))
        start = max((starts[parent] + len(segments[parent].ids) for parent in segment.parents), default=0)
        starts.append(start + _stride(trajectory, segment))
    sees = [_not_empty(segments, seen) for seen in above]
    blocks: dict[int, tuple[int, ...]] = {}
    if trajectory.attention == "synchronous":
        for sampled in _sampled_together(trajectory, above):
            whole = frozenset().union(*(above[s] for s in sampled))
            for s in sampled:
                blocks[s], sees[s] = sampled, _not_empty(segments, whole)
    return Sight(tuple(starts), tuple(sees), blocks, tuple(above))


def _not_empty(segments: Sequence[Segment], indices: frozenset[int]) -> frozenset[int]:
    return frozenset(s for s in indices if segments[s].ids)


def _stride(trajectory: Trajectory, segment: Segment) -> int:
    """How much later than its parents' end the first segment of a synchronous thread starts; 0 for all others."""
    inside = any(trajectory.segments[parent].thread == segment.thread for parent in segment.parents)
    if trajectory.attention != "synchronous" or not segment.thread or inside:
        return 0
    return (segment.thread[-1] - 1) * trajectory.stride


def _sampled_together(trajectory: Trajectory, above: Sequence[frozenset[int]]) -> list[tuple[int, ...]]:
    """Of each synchronous block, the sampled segments of its threads, in the order of the threads."""
    threads: dict[tuple[int, ...], list[int]] = {}
    for s, segment in enumerate(trajectory.segments):
        if segment.thread:
            threads.setdefault(segment.thread, []).append(s)
    blocks: dict[int, list[int]] = {}
    forks: dict[int, frozenset[int]] = {}
    for thread, own in sorted(threads.items()):
        sampled = [s for s in own if trajectory.segments[s].origin == "sampled"]
        where = f"{trajectory.problem_id}: synchronous thread {thread}"
        if len(thread) != 2 or len(sampled) != 1:
            raise PackingError(f"{where} has {len(sampled)} calls: only flat threads of one call each can be packed")
        fork = above[sampled[0]].difference(own)
        if forks.setdefault(thread[0], fork) != fork:
            raise PackingError(f"{where} forks elsewhere than its siblings: a block has one fork")
        blocks.setdefault(thread[0], []).append(sampled[0])
    return [tuple(block) for block in blocks.values()]
