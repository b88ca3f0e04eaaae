"""Goes on after a sampler's engine died: ranks agree, engines come back with the present weights, the rest is asked."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from accelerate.utils import gather_object
from torch import Tensor

from apr_train.lifecycle import Halted, Stopped
from apr_train.rollouts import Revivable, Rollouts
from rollout.engine import EngineDied, EngineError

Result = TypeVar("Result")

PAUSE = 2.0
"""Seconds between two looks at an engine that has not come back yet."""
MARGIN = 0.9
"""Share of deadline.engine_start after which an engine is given up: the deadline itself ends the run without saving."""

logger = logging.getLogger(__name__)


class EngineLost(Halted, EngineError):
    """The engine died too often, did not come back, or refuses a call. Raised on every rank; the run is saved."""


@dataclass
class Revival:
    """How often the engines of a stage died, and what is done then. All ranks do the same, whoever's engine it was.

    >>> scored = Revival(rollouts).run(lambda: full_weights(policy), lambda: rollouts.collect(...))
    """

    rollouts: Rollouts
    used: int = 0
    """Deaths in this stage; one in which several ranks lost their engines counts once."""
    sync_seconds: float = 0.0
    """What the first load of the last `run` took."""

    def run(self, weights: Callable[[], Iterator[tuple[str, Tensor]]], sample: Callable[[], Result]) -> Result:
        """Loads `weights` into the sampler and returns what `sample` returns, with the tokens that it would have
        returned had no engine died. Weights count once in `policy_version`, however often they are loaded. Collective.

        Raises, on every rank, Stopped where one was told to stop, and EngineLost.
        """
        sampler, found, loads = self.rollouts.sampler, list[Result](), 0
        version = sampler.policy_version

        def load() -> None:
            nonlocal loads
            started, loads = time.perf_counter(), loads + 1
            sampler.policy_version = version
            self._load(weights())
            if loads == 1:
                self.sync_seconds = time.perf_counter() - started

        def ask() -> None:
            if not found:  # else this rank has all it asked for, and another one has not
                found.append(sample())

        with self.rollouts.memo.kept():
            while not (self._survived(load) and self._survived(ask)):
                pass
        return found[0]

    def _load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        with self.rollouts.deadlines("sync"):
            try:
                self.rollouts.sampler.load_weights(weights)
            finally:
                for _ in weights:  # each is gathered by all ranks, also when the engine of one is dead
                    pass

    def _survived(self, act: Callable[[], None]) -> bool:
        """Whether no rank's engine died in `act`; when one did, all are back."""
        died = refused = ""
        try:
            act()
        except EngineDied as error:
            died = str(error)
        except EngineError as error:
            refused = str(error)
        except Stopped:  # told to the others, by the flag too
            self._agree(stopped=True)
        deaths = self._agree(died, refused)
        if not deaths:
            return True
        if self.used >= self.rollouts.restarts:
            raise EngineLost(
                f"the sampler's engine died, {_told(deaths)}, after {self.used} restarts in this stage "
                "(rollout.engine_restarts): look for the cause in its log, then start the same command again"
            )
        self.used += 1
        logger.warning("the sampler's engine died, %s: restart %d", _told(deaths), self.used)
        failed = self._agree(self._bring_back())
        if failed:
            raise EngineLost(
                f"the sampler's engine died and is not back, {_told(failed)}: start the same command again"
            )
        return False

    def _agree(self, died: str = "", refused: str = "", *, stopped: bool = False) -> dict[int, str]:
        """What happened, by rank, the same on all. Raises what all ranks must end with."""
        flag = self.rollouts.stop
        stopped = stopped or (flag is not None and flag())
        with self.rollouts.deadlines("collective", lambda: "whether an engine died"):
            told: list[tuple[str, str, bool]] = gather_object([(died, refused, stopped)])
        if any(each[2] for each in told):
            raise Stopped("told to stop while rollouts were sampled")
        refusals = {rank: each[1] for rank, each in enumerate(told) if each[1]}
        if refusals:
            raise EngineLost(next(iter(refusals.values())) if len(told) == 1 else _told(refusals))
        return {rank: each[0] for rank, each in enumerate(told) if each[0]}

    def _bring_back(self) -> str:
        """Why the engine is not back; empty when it is. A rank whose engine lives does the same: in-process engines
        are built by all ranks together, and one server may serve all."""
        sampler, deadlines = self.rollouts.sampler, self.rollouts.deadlines
        assert isinstance(sampler, Revivable)  # no other raises EngineDied
        limit = deadlines.seconds.get("engine_start", 0.0)
        end = time.monotonic() + limit * MARGIN if limit else math.inf
        with deadlines("engine_start", lambda: "an engine that had died"):
            while True:
                try:
                    sampler.revive(end - time.monotonic())
                    return ""
                except EngineDied as error:  # not yet: something else starts it
                    stopped = self.rollouts.stop is not None and self.rollouts.stop()
                    if stopped or time.monotonic() + PAUSE >= end:
                        return str(error)
                except EngineError as error:
                    return str(error)
                time.sleep(PAUSE)


def _told(by_rank: dict[int, str]) -> str:
    return "; ".join(f"rank {rank}: {why}" for rank, why in by_rank.items())
