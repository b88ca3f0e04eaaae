"""A trajectory with all that rewards and metrics look at, and the group of rollouts it is compared with."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from rewards.verdict import Verdict
from rollout.critical_path import Lengths
from rollout.trajectory import Trajectory

Name = tuple[int, ...]
"""A thread's name, as in `Segment.thread`: (b, k) is the k-th thread that the root forked in turn b; () is the root."""


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread of a trajectory."""

    name: Name
    sampled: tuple[int, ...]
    """What the policy wrote in it, without the tag that closes it."""
    tokens: int
    """Its own response tokens, forced ones included, those of threads nested in it excluded."""
    finished: bool
    """It closed itself; False when it was cut off by a budget, or ended the whole text instead."""
    success: float
    """0 to 1: of one that closed itself what the task says of it, 1 where the task says nothing; else 0."""


@dataclass(frozen=True)
class Scored:
    """A judged trajectory. `flaw`: its first breach of the grammar, if any. `response`: the ids that were judged; empty
    where none finished. `thread_verdicts`: how well threads that closed themselves did what they were asked for, 0 to
    1, without those that the task cannot judge; {(0, 1): 1.0, (0, 2): 0.0}."""

    trajectory: Trajectory
    lengths: Lengths
    verdict: Verdict
    flaw: str | None = None
    response: tuple[int, ...] = ()
    thread_verdicts: Mapping[Name, float] = field(default_factory=dict[Name, float])

    @property
    def judged(self) -> bool:
        """False when the verifier itself failed, so that nobody may call this trajectory wrong."""
        return self.verdict not in ("timeout", "error")

    @property
    def correct(self) -> bool:
        return self.verdict == "correct"

    @cached_property
    def threads(self) -> Mapping[Name, Thread]:
        """Every thread by name, in order of their first segments."""
        trajectory = self.trajectory
        last = {trajectory.segments[call.sampled].thread: call for call in trajectory.calls}
        sampled: dict[Name, list[int]] = {}
        tokens: dict[Name, int] = {}
        for segment in trajectory.segments:
            if segment.thread:
                tokens[segment.thread] = tokens.get(segment.thread, 0) + len(segment.ids)
                written = sampled.setdefault(segment.thread, [])
                if segment.origin == "sampled":
                    written += segment.ids
        found: dict[Name, Thread] = {}
        for name, written in sampled.items():
            finished = name in last and last[name].event == "join"
            success = self.thread_verdicts.get(name, 1.0) if finished else 0.0
            found[name] = Thread(name, tuple(written[:-1] if finished else written), tokens[name], finished, success)
        return found

    @cached_property
    def blocks(self) -> Mapping[Name, tuple[Thread, ...]]:
        """The sibling threads of every block, by the block's name: a thread's name without its last number."""
        found: dict[Name, list[Thread]] = {}
        for name, thread in self.threads.items():
            found.setdefault(name[:-1], []).append(thread)
        return {name: tuple(threads) for name, threads in found.items()}

    @property
    def root_tokens(self) -> int:
        """Response tokens of the root itself, forced ones included."""
        return self.lengths.l_total - self.lengths.parallel_tokens


Figure = Callable[[Scored], float]


@dataclass(frozen=True)
class Group:
    """The rollouts of one prompt, which group-relative terms compare. Order does not matter to any term.

    >>> group = Group((right_and_short, right_and_long, wrong))
    >>> len(group.correct)
    2
    """

    members: tuple[Scored, ...]
    _known: dict[Figure, dict[int, float]] = field(default_factory=dict[Figure, dict[int, float]], init=False)

    def __iter__(self) -> Iterator[Scored]:
        return iter(self.members)

    @cached_property
    def correct(self) -> tuple[Scored, ...]:
        return tuple(member for member in self.members if member.correct)

    def figures(self, figure: Figure) -> Mapping[int, float]:
        """`figure` of every member by the member's id(), worked out once per group."""
        if figure not in self._known:
            self._known[figure] = {id(member): figure(member) for member in self.members}
        return self._known[figure]
