"""A step's rollouts on this rank, kept until the trainer's log-probs of them are known."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rollout.errors import shortened
from rollout.trajectory import Trajectory
from rollout.viewer import Recorded

logger = logging.getLogger(__name__)

OnRollouts = Callable[[Sequence[Recorded]], None]
"""Called with this rank's rollouts of a step once their log-probs are known, or when the step fails before that."""


class StepRecord:
    """Between `begin` and `hand_out` lies one step; rollouts are handed out once, however often a pass is repeated."""

    def __init__(self, on_rollouts: OnRollouts) -> None:
        self.on_rollouts = on_rollouts
        self._drawn: Sequence[Recorded] = ()
        self._logprobs: dict[int, NDArray[np.float32]] = {}

    def begin(self, drawn: Sequence[Recorded]) -> None:
        """The step's rollouts, whose calls are numbered in order (`Rows`)."""
        self._drawn, self._logprobs = drawn, {}

    def note(self, call_B: Tensor, logprobs_BC: Tensor, mask_BC: Tensor) -> None:
        """The trainer's log-probs (nats) of the calls of a batch of rows; those of an inert row, -1, are nobody's."""
        if not self._drawn:
            return
        values_BC = logprobs_BC.detach().float().cpu().numpy()
        real_BC = mask_BC.bool().cpu().numpy()
        for call, values, real in zip(call_B.tolist(), values_BC, real_BC, strict=True):
            if call >= 0:
                self._logprobs[call] = values[real]

    def hand_out(self) -> None:
        """Calls `on_rollouts`, not twice for one step. The log-probs of a call are None where no pass has scored it, or
        one of them is no number."""
        if not self._drawn:
            return
        numbers, drawn, self._drawn = count(), self._drawn, ()
        self.on_rollouts([replace(each, trainer_logprobs=self._of(each.trajectory, numbers)) for each in drawn])

    def failed(self) -> None:
        """`hand_out` of a step that fails: its rollouts may say why. What goes wrong here must not hide that."""
        try:
            self.hand_out()
        except Exception as error:
            logger.warning("the rollouts of a step that failed are not recorded: %s", shortened(error))

    def _of(self, trajectory: Trajectory, numbers: Iterator[int]) -> list[list[float] | None]:
        found: list[list[float] | None] = []
        for call in trajectory.calls:
            values = self._logprobs.get(next(numbers))
            assert values is None or len(values) == len(trajectory.segments[call.sampled].ids)  # the same call
            found.append(None if values is None or not np.isfinite(values).all() else values.tolist())
        return found
