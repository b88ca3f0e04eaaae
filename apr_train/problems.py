"""Draws the problems of a whole run at its start, and checks that their prompts fit."""

from collections.abc import Sequence
from dataclasses import dataclass

from apr_train.config import Config
from apr_train.model import ModelError
from apr_train.tasks.base import Problem, Task
from rollout.tokens import Tokens


@dataclass(frozen=True)
class Problems:
    """The warm start's, GRPO's and the held-out problems; empty where a stage is skipped."""

    sft: list[Problem]
    rl: list[Problem]
    heldout: list[Problem]


def draw_problems(config: Config, task: Task) -> Problems:
    """All problems by `data.seed`; GRPO draws with the next seed. Of a finite file the two draws overlap.

    Raises TaskError when the task has not as many.
    """
    data = config.data
    return Problems(
        sft=task.problems("train", data.train_problems, data.seed) if config.sft.steps else [],
        rl=task.problems("train", data.train_problems, data.seed + 1) if config.algorithm.steps else [],
        heldout=task.problems("heldout", config.eval.problems, data.seed) if config.eval.problems else [],
    )


def check_prompts(tokens: Tokens, problems: Sequence[Problem], config: Config) -> None:
    """Raises ModelError for the first prompt that would leave no room to reason and answer."""
    room = config.model.max_context - 2 * config.rollout.answer_tokens
    for problem in problems:
        if (length := len(tokens.prompt(problem.prompt))) > room:
            raise ModelError(
                f"problem {problem.id} has {length} prompt tokens; model.max_context={config.model.max_context} leaves "
                f"room for {room}: raise it, or drop the problem"
            )
