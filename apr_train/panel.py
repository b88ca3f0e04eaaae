"""A few dozen trajectories of a step as a W&B panel: the same page as scripts/view_rollouts.py makes."""

import math
from collections.abc import Mapping, Sequence

from apr_train.config import Config
from apr_train.logger import MetricsLog
from rewards.scored import Scored
from rollout.tokens import Tokens
from rollout.viewer import Recorded, page

MOST = 32
"""Trajectories of one panel; whole groups, but at least one."""


class RolloutPanel:
    """Draws every `logger.panel_every`-th step on the main rank; does nothing where W&B is off."""

    def __init__(self, config: Config, log: MetricsLog, tokens: Tokens) -> None:
        self.every, self.log, self.tokens = config.logger.panel_every, log, tokens
        self.name, self.most = config.name, max(config.algorithm.group_size, MOST - MOST % config.algorithm.group_size)

    def write(
        self,
        step: int,
        scored: Sequence[Scored],
        rewards: Sequence[float],
        advantages: Sequence[float],
        terms: Sequence[Mapping[str, float]],
    ) -> None:
        """`scored` come group by group. `rewards` are NaN where nothing was judged."""
        if not self.every or step % self.every or not self.log.draws:
            return
        recorded = [
            Recorded(step, each.trajectory, each.verdict, None if math.isnan(reward) else reward, own, each.flaw, parts)
            for each, reward, own, parts in zip(
                scored[: self.most], rewards[: self.most], advantages[: self.most], terms[: self.most], strict=True
            )
        ]
        known = len(self.tokens.tokenizer)
        self.log.draw(
            "rollouts", page(recorded, self.tokens.decode, vocabulary=known, title=f"{self.name}, step {step}")
        )
