"""Runs one trajectory: a dialect's state machine over an engine, within budgets, every end named."""

from rollout.dialects.base import Dialect
from rollout.engine import Engine, EngineError
from rollout.recording import NO_LIMIT, Budget, Recording, Strategy
from rollout.seeds import mix
from rollout.thread import Thread
from rollout.trajectory import Outcome, Trajectory

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
    return Trajectory(
        *(problem_id, dialect.name, tuple(run.segments), tuple(run.calls), outcome, policy_version, run.attention),
        stride=run.stride,
        notes=dict(sorted(run.notes.items())),
    )


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
