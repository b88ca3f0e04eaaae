"""Trajectories from lengths: what reward tests are about, with numbers that are easy to work with by hand."""

from collections.abc import Sequence
from itertools import count
from typing import Any

from rewards.scored import Scored
from rewards.verdict import Verdict
from rollout.critical_path import measure
from rollout.trajectory import Call, Outcome, Segment, Trajectory

Piece = Any
"""A number of sampled tokens, a tuple of token ids, or a list of threads; a thread is a tuple of pieces in a list."""


def grow(
    *pieces: Piece,
    prompt: int = 10,
    cut: Sequence[tuple[int, ...]] = (),
    outcome: Outcome = "answered",
    header: int = 0,
    join: int = 0,
) -> Trajectory:
    """Every piece is a call, every list a block; no two tokens are equal unless given as ids.

    `cut` names threads that did not close themselves. Forced are `header` tokens before each thread and `join` tokens
    after each block.

    >>> grow(20, [[30], [50]], 20)  # a root of 20 tokens, threads of 30 and 50, then 20: L_total 120, L_critical 90
    """
    fresh = count(1000)
    segments = [Segment("prompt", tuple(range(prompt)))]
    calls: list[Call] = []

    def force(size: int, name: tuple[int, ...], parents: tuple[int, ...]) -> list[int]:
        if size:
            segments.append(Segment("forced", tuple(next(fresh) for _ in range(size)), None, parents, name))
        return [len(segments) - 1] if size else []

    def run(own: Sequence[Piece], name: tuple[int, ...], context: list[int], parents: tuple[int, ...]) -> list[int]:
        blocks = 0
        if name:
            context = [*context, *force(header, name, parents)]
            parents = (context[-1],) if header else parents
        for at, piece in enumerate(own):
            if isinstance(piece, list):
                views = [run(t, (*name, blocks, k), list(context), parents) for k, t in enumerate(piece, start=1)]
                parents = tuple(view[-1] for view in views)
                context = [*context, *(segment for view in views for segment in view[len(context) :])]
                joined = force(join, name, parents)
                context, parents = [*context, *joined], tuple(joined) or parents
                blocks += 1
                continue
            ids = piece if isinstance(piece, tuple) else tuple(next(fresh) for _ in range(piece))
            segments.append(Segment("sampled", ids, (0.0,) * len(ids), parents, name))
            forks = at + 1 < len(own)
            ends = "truncated" if name in cut else "join" if name else "final"
            calls.append(Call(tuple(context), len(segments) - 1, "fork" if forks else ends))
            context, parents = [*context, len(segments) - 1], (len(segments) - 1,)
        return context

    run(pieces, (), [0], (0,))
    return Trajectory("p", "threadweaver", tuple(segments), tuple(calls), outcome)


def judged(trajectory: Trajectory, verdict: Verdict = "correct", flaw: str | None = None) -> Scored:
    return Scored(trajectory, measure(trajectory), verdict, flaw)


SAME = tuple(range(500, 550))
SHAPES: dict[str, Trajectory] = {
    "sequential": grow(60),
    "one block": grow(20, [[30], [50]], 20),
    "nested": grow(10, [[20, [[10], [30]], 10], [40]], 10),
    "malformed": grow(20, [[30], [50]], 20),
    "empty threads": grow(40, [[1], [1]], 18),
    "duplicate threads": grow(20, [[SAME], [SAME]], 20),
}
"""L_total, L_critical: 60, 60 | 120, 90 | 130, 80 | 120, 90 | 60, 59 | 140, 90. An empty thread is its closing tag."""
