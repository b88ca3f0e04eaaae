"""In which order a person reads a trajectory: a block right after the segment that forked it."""

from rollout.trajectory import Trajectory

Name = tuple[int, ...]


def reading_order(trajectory: Trajectory) -> list[int]:
    """All segments' indices: those of a thread in order, its blocks where they were forked, their threads by number.

    Recorded order is another: threads run at the same time, and their segments lie between each other.
    """
    segments = trajectory.segments
    own: dict[Name, list[int]] = {}
    for index, segment in enumerate(segments):
        own.setdefault(segment.thread, []).append(index)
    place: dict[Name, tuple[int, ...]] = {(): ()}
    for name in sorted(own, key=len):
        if name:
            parent, first = name[:-2], own[name][0]
            forked = [p for p in segments[first].parents if segments[p].thread == parent]
            before = forked or [p for p in own.get(parent, ()) if p < first]
            place[name] = (*place.get(parent, parent), max(before, default=-1), 1, *name[-2:])
    return sorted(range(len(segments)), key=lambda index: (*place[segments[index].thread], index, 0))
