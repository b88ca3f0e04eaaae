"""What the calls of a stitched or synchronous trajectory saw, segment by segment, and where each segment started."""

from collections.abc import Sequence
from dataclasses import dataclass

from apr_train.packing import PackingError
from rollout.trajectory import Call, Segment, Trajectory

Name = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sight:
    """Of each segment of a stitched trajectory, by its index.

    Its tokens see the segments `sees[s]` whole (all that it descends from, but none that is empty) and their own
    segment's earlier tokens. The first has position `starts[s]`, the next one more.

    >>> prompt, join = Segment("prompt", (7, 8)), Segment("forced", (4,), parents=(1, 2))
    >>> threads = [Segment("sampled", ids, (0.0,) * len(ids), (0,), (0, k)) for k, ids in enumerate(((1,), (2, 3)), 1)]
    >>> found = sight(Trajectory("p", "multiverse", (prompt, *threads, join), (), "answered", attention="stitched"))
    >>> found.starts, [sorted(seen) for seen in found.sees]
    ((0, 2, 2, 4), [[], [0], [0], [0, 1, 2]])
    """

    starts: tuple[int, ...]
    sees: tuple[frozenset[int], ...]


def sight(trajectory: Trajectory) -> Sight:
    """Works out a stitched trajectory from its segments' parents."""
    segments = trajectory.segments
    above: list[frozenset[int]] = []
    starts: list[int] = []
    for segment in segments:
        above.append(frozenset(segment.parents).union(*(above[parent] for parent in segment.parents)))
        starts.append(max((starts[parent] + len(segments[parent].ids) for parent in segment.parents), default=0))
    sees = (frozenset(s for s in seen if segments[s].ids) for seen in above)
    return Sight(tuple(starts), tuple(sees))


@dataclass(frozen=True, slots=True)
class Lockstep:
    """A synchronous block: what all its threads read before, as flat ids, and each thread's name, headers and sample.

    A thread's headers start `(k - 1) * stride` after what lies before. They see that and themselves; the tokens that
    the thread then samples also see the headers of all threads, and of each other thread the tokens it sampled in
    strictly earlier steps.
    """

    before: tuple[int, ...]
    names: tuple[Name, ...]
    headers: tuple[tuple[int, ...], ...]
    sampled: tuple[int, ...]


def lockstep_blocks(trajectory: Trajectory) -> dict[Name, Lockstep]:
    """The block of each thread of a synchronous trajectory.

    Raises PackingError for threads that nest, have more or less than one call, or read other things before their
    headers than their siblings.
    """
    calls: dict[Name, list[Call]] = {segment.thread: [] for segment in trajectory.segments if segment.thread}
    for call in trajectory.calls:
        thread = trajectory.segments[call.sampled].thread
        if thread:
            calls[thread].append(call)
    blocks: dict[Name, list[Name]] = {}
    for name in sorted(calls):
        if len(name) != 2 or len(calls[name]) != 1:
            raise PackingError(
                f"{trajectory.problem_id}: synchronous thread {name} has {len(calls[name])} calls: only threads of one "
                "call each, which do not fork, can be packed"
            )
        blocks.setdefault(name[:1], []).append(name)
    found: dict[Name, Lockstep] = {}
    for names in blocks.values():
        found |= dict.fromkeys(names, _lockstep(trajectory, names, [calls[name][0] for name in names]))
    return found


def _lockstep(trajectory: Trajectory, names: Sequence[Name], calls: Sequence[Call]) -> Lockstep:
    befores: set[tuple[int, ...]] = set()
    headers: list[tuple[int, ...]] = []
    for name, call in zip(names, calls, strict=True):
        own = _own(trajectory.segments, call.context, name)
        headers.append(own)
        befores.add(call.context[: len(call.context) - len(own)])
    if len(befores) > 1:
        raise PackingError(f"{trajectory.problem_id}: the threads of synchronous block {names[0][0]} fork apart")
    return Lockstep(befores.pop(), tuple(names), tuple(headers), tuple(call.sampled for call in calls))


def _own(segments: Sequence[Segment], context: Sequence[int], name: Name) -> tuple[int, ...]:
    """The thread's segments at the end of its context."""
    count = 0
    while count < len(context) and segments[context[-1 - count]].thread == name:
        count += 1
    return tuple(context[len(context) - count :])
