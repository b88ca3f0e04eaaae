"""L_total, L_critical and the shape of the fork/join tree: pure functions of a trajectory."""

from dataclasses import dataclass

from rollout.trajectory import Segment, Trajectory


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts of one trajectory's response; the prompt never counts.

    >>> Lengths(l_total=179, l_critical=75, blocks=1, threads=5, width=5, depth=1, parallel_tokens=150).eta
    0.5810055865921788
    """

    l_total: int
    l_critical: int
    blocks: int
    threads: int
    width: int
    """Threads of the widest block; 0 without one."""
    depth: int
    """How deep blocks nest; 0 without one."""
    parallel_tokens: int
    """Response tokens that belong to a thread: its forced header, what it sampled, its forced close."""

    @property
    def eta(self) -> float:
        """Acceleration ratio 1 - L_critical / L_total; 0 for an empty response."""
        return 1.0 - self.l_critical / self.l_total if self.l_total else 0.0

    @property
    def parallel_ratio(self) -> float:
        """Share of response tokens inside threads."""
        return self.parallel_tokens / self.l_total if self.l_total else 0.0


def counted(segment: Segment) -> int:
    """Response tokens of a segment: a prompt's never count."""
    return 0 if segment.origin == "prompt" else len(segment.ids)


def finish_times(trajectory: Trajectory) -> list[int]:
    """When each segment ends, in tokens of its longest chain; it started `counted(segment)` tokens earlier."""
    finish: list[int] = []
    for segment in trajectory.segments:
        finish.append(counted(segment) + max((finish[parent] for parent in segment.parents), default=0))
    return finish


def critical_segments(trajectory: Trajectory) -> list[int]:
    """The segments of one longest chain, first to last: their counted tokens sum to L_critical.

    Where several are as long, the one through the earliest recorded segments.
    """
    finish = finish_times(trajectory)
    if not finish:
        return []
    chain = [finish.index(max(finish))]
    while parents := trajectory.segments[chain[-1]].parents:
        chain.append(max(sorted(parents), key=finish.__getitem__))
    return chain[::-1]


def measure(trajectory: Trajectory) -> Lengths:
    """Counts every response segment once; L_critical is the longest path over `Segment.parents`.

    A root that writes 3 tokens, forks threads of 5 and 9 (2 forced header tokens each), then answers with 2:
    L_total = 3 + (2+5) + (2+9) + 2 = 23, L_critical = 3 + 2 + 9 + 2 = 16.
    """
    finish = finish_times(trajectory)
    l_total = parallel_tokens = 0
    for segment in trajectory.segments:
        own = counted(segment)
        l_total += own
        parallel_tokens += own if segment.thread else 0
    threads = {segment.thread for segment in trajectory.segments if segment.thread}
    widths: dict[tuple[int, ...], int] = {}
    for thread in threads:
        widths[thread[:-1]] = widths.get(thread[:-1], 0) + 1
    return Lengths(
        l_total=l_total,
        l_critical=max(finish, default=0),
        blocks=len(widths),
        threads=len(threads),
        width=max(widths.values(), default=0),
        depth=max((len(thread) // 2 for thread in threads), default=0),
        parallel_tokens=parallel_tokens,
    )
