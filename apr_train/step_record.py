"""A step's rollouts on this rank, kept until the trainer's log-probs of them are known."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rollout.viewer import Recorded

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
        known = [[self._logprobs.get(next(numbers)) for _ in each.trajectory.calls] for each in drawn]
        for each, own in zip(drawn, known, strict=True):
            sizes = [len(each.trajectory.segments[call.sampled].ids) for call in each.trajectory.calls]
            assert all(values is None or len(values) == size for values, size in zip(own, sizes, strict=True))
        self.on_rollouts(
            [
                replace(each, trainer_logprobs=[_numbers(values) for values in own])
                for each, own in zip(drawn, known, strict=True)
            ]
        )


def _numbers(values: NDArray[np.float32] | None) -> list[float] | None:
    return None if values is None or not np.isfinite(values).all() else values.tolist()
