"""A few dozen trajectories of a step as a W&B panel: the same page as scripts/view_rollouts.py makes."""

from collections.abc import Sequence

from apr_train.config import Config
from apr_train.logger import MetricsLog
from rollout.tokens import Tokens
from rollout.viewer import Recorded, page

MOST = 32
"""Trajectories of one panel; whole groups, but at least one."""


class RolloutPanel:
    """Draws every `logger.panel_every`-th step on the main rank; does nothing where W&B is off."""

    def __init__(self, config: Config, log: MetricsLog, tokens: Tokens) -> None:
        self.every, self.log, self.tokens = config.logger.panel_every, log, tokens
        self.name, self.most = config.name, max(config.algorithm.group_size, MOST - MOST % config.algorithm.group_size)

    def write(self, recorded: Sequence[Recorded]) -> None:
        """The rollouts of one step come group by group."""
        step = recorded[0].step
        if not self.every or step % self.every or not self.log.draws:
            return
        shown, known, title = recorded[: self.most], len(self.tokens.tokenizer), f"{self.name}, step {step}"
        self.log.draw("rollouts", page(shown, self.tokens.decode, vocabulary=known, title=title))
