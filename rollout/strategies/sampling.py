"""Whole responses of the policy as it is, sampled side by side."""

from collections.abc import Sequence

from rollout.engine import EngineError
from rollout.engines.calls import together
from rollout.orchestrator import run_trajectory
from rollout.seeds import mix
from rollout.strategies.base import Ids, Question, Setting
from rollout.trajectory import Segment, Trajectory


async def respond(setting: Setting, question: Question, prompt: Ids, seed: int) -> Trajectory:
    """One response to a prompt. A prompt that leaves no room to answer ends as `truncated`, with nothing sampled."""
    if not has_room(setting, prompt):
        only = (Segment("prompt", prompt),)
        ends = (question.id, setting.dialect.name, only, (), "truncated", setting.policy_version)
        return Trajectory(*ends, notes={"strategy/prompt does not fit": 1})
    return await run_trajectory(
        *(setting.engine, setting.dialect, question.id, prompt, setting.budget),
        temperature=setting.temperature,
        seed=seed,
        policy_version=setting.policy_version,
        strategy=setting.threads,
    )


def has_room(setting: Setting, prompt: Ids) -> bool:
    """Whether a response to this prompt can hold a token of reasoning and its answer. EngineError for an empty one."""
    if not prompt:
        raise EngineError("nothing to sample: the prompt is empty")
    closing = setting.dialect.closing
    reserve = 0 if closing is None else setting.budget.answer + closing
    return setting.engine.max_context - len(prompt) > reserve


async def sample(setting: Setting, question: Question, count: int, seed: int) -> list[Trajectory]:
    """`count` independent responses to the question, number i (from 0) with the seed `mix(seed, i)`."""
    return await respond_all(setting, question, [question.prompt] * count, seed)


async def respond_all(setting: Setting, question: Question, prompts: Sequence[Ids], seed: int) -> list[Trajectory]:
    """A response to each prompt, all at once, number i (from 0) with the seed `mix(seed, i)`."""
    return await together(respond(setting, question, prompt, mix(seed, i)) for i, prompt in enumerate(prompts))
