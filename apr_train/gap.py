"""Refuses to train a policy that is not the one that sampled."""

import logging
import math

from rollout.errors import UserError

logger = logging.getLogger(__name__)


class GapError(UserError, RuntimeError):
    """The trainer's log-probs are too far from the sampler's: weights were not synced, or masks or dtypes differ."""


class GapGate:
    """Watches mean |log p_sampler - log p_trainer| (nats) of every micro-batch.

    >>> GapGate(warn=0.02, stop=0.5).check(1e-6)
    1e-06
    """

    def __init__(self, warn: float, stop: float) -> None:
        self.warn, self.stop = warn, stop
        self.sum, self.count = 0.0, 0

    @property
    def mean(self) -> float:
        """Mean gap over all checks so far; 0 before the first."""
        return self.sum / max(1, self.count)

    def check(self, gap: float) -> float:
        """Returns `gap`; warns above `warn`, raises GapError above `stop`.

        NaN is let through and not counted: the trainer has no log-probs then, and no gradient either (see `guarded`).
        """
        if math.isnan(gap):
            return gap
        if gap > self.stop:
            raise GapError(
                f"sampler and trainer differ by {gap:.3g} nats a token (algorithm.gap_stop={self.stop}): "
                "the weights did not reach the sampler, or it runs other masks or dtypes than the trainer"
            )
        if gap > self.warn:
            logger.warning("sampler and trainer differ by %.3g nats a token (algorithm.gap_warn=%g)", gap, self.warn)
        self.sum, self.count = self.sum + gap, self.count + 1
        return gap
