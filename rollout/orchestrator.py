"""Runs one trajectory: a dialect's state machine over an engine, within budgets, every end named."""

from collections.abc import Sequence
from dataclasses import replace
from heapq import heappop, heappush

from rollout.dialects.base import Dialect
from rollout.engine import Engine, EngineError
from rollout.recording import NO_LIMIT, Budget, Recording, Strategy
from rollout.seeds import mix
from rollout.thread import Thread
from rollout.trajectory import Call, Outcome, Segment, Trajectory

__all__ = ["FORK_JOIN", "Budget", "Strategy", "mix", "run_trajectory"]

FORK_JOIN = Strategy()


async def run_trajectory(
    engine: Engine,
    dialect: Dialect,
    problem_id: str,
    prompt_ids: tuple[int, ...],
    budget: Budget,
    *,
    temperature: float = 1.0,
    seed: int | None = None,
    policy_version: int = 0,
    strategy: Strategy = FORK_JOIN,
) -> Trajectory:
    """Samples one trajectory for a prompt. Raises EngineError when the engine cannot serve it.

    With a `seed`, each call draws from a stream of its own, named by (seed, thread, turn): what is sampled does not
    depend on which call the engine happens to serve first.
    """
    run = Recording(engine, dialect, budget, temperature, seed, strategy)
    outcome = await _root(run, prompt_ids)
    segments, calls = in_order(run.segments, run.calls)
    return Trajectory(
        *(problem_id, dialect.name, segments, calls, outcome, policy_version, run.attention),
        stride=run.stride,
        thread_vectors=strategy.thread_vectors,
        notes=dict(sorted(run.notes.items())),
    )


def in_order(segments: Sequence[Segment], calls: Sequence[Call]) -> tuple[tuple[Segment, ...], tuple[Call, ...]]:
    """The same segments and calls, in an order that does not depend on which thread the engine served first: parents
    before children, and of several that could come next the deepest thread's, then that of the smallest name; so the
    root's last call is the last of all that the response waited for."""
    waits = [len(segment.parents) for segment in segments]
    children: list[list[int]] = [[] for _ in segments]
    for index, segment in enumerate(segments):
        for parent in segment.parents:
            children[parent].append(index)
    # within a thread the order is that of recording, which is the thread's own
    ready = [(-len(each.thread), each.thread, index) for index, each in enumerate(segments) if not waits[index]]
    place: dict[int, int] = {}
    while ready:
        *_, index = heappop(ready)
        place[index] = len(place)
        for child in children[index]:
            waits[child] -= 1
            if not waits[child]:
                heappush(ready, (-len(segments[child].thread), segments[child].thread, child))
    moved = {place[index]: segment for index, segment in enumerate(segments)}
    ordered = [replace(moved[at], parents=tuple(place[p] for p in moved[at].parents)) for at in range(len(segments))]
    named = [Call(tuple(place[s] for s in call.context), place[call.sampled], call.event) for call in calls]
    return tuple(ordered), tuple(sorted(named, key=lambda call: call.sampled))


async def _root(run: Recording, prompt_ids: tuple[int, ...]) -> Outcome:
    context = [run.add("prompt", prompt_ids, ())]
    critical = NO_LIMIT if run.budget.critical is None else run.budget.critical
    root = Thread(run, (), context, left=run.budget.response, deadline=critical)
    if root.room() <= root.reserve():
        raise EngineError(
            f"a prompt of {len(prompt_ids)} tokens leaves no room to reason and answer: raise model.max_context="
            f"{run.engine.max_context} or the budgets in rollout, or drop the problem"
        )
    begin = run.dialect.begin()
    if begin is not None:
        if len(begin.children) > run.budget.threads:
            raise EngineError(
                f"dialect {run.dialect.name} starts {len(begin.children)} threads, and rollout.max_threads is "
                f"{run.budget.threads}: raise it, or lower the dialect's paths"
            )
        if not await root.block(begin):
            return await root.force_answer()
    event = await root.run()
    if event == "final":
        return "answered"
    return "malformed" if event == "malformed" else await root.force_answer()
