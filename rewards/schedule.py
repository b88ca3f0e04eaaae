"""How strong a term is at a training step: pure functions of the step, so that a resumed run goes on as it was.

Steps count from 1. Every schedule is a factor on its term; the settings of each kind are the fields of its class.

    schedule: {kind: cosine, start: 1.0, end: 0.0, steps: 200}
    schedule: {kind: piecewise, stages: [{until: 200, schedule: {kind: alternating}}, {schedule: {value: 0.0}}]}
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from rewards.errors import RewardError
from rollout.options import read_kind, read_options
from rollout.orchestrator import mix


class Schedule(Protocol):
    """A pure function of the training step."""

    def __call__(self, step: int) -> float:
        """The factor at `step`, counted from 1."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """f(step) = value."""

    value: float = 1.0

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True, slots=True)
class Linear:
    """f(step) = start + (end - start) * min((step - 1) / steps, 1). 1 to 0 in 100 steps: 1 at step 1, 0.5 at 51."""

    start: float = 1.0
    end: float = 0.0
    steps: int = 100

    def __post_init__(self) -> None:
        _need(self.steps >= 1, f"a linear schedule takes at least one step, not {self.steps}")

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min((step - 1) / self.steps, 1.0)


@dataclass(frozen=True, slots=True)
class Cosine:
    """end + (start - end) * (1 + cos(pi * x)) / 2, x = min((step - 1) / steps, 1). 1 to 0 in 100: 0.5 at step 51."""

    start: float = 1.0
    end: float = 0.0
    steps: int = 100

    def __post_init__(self) -> None:
        _need(self.steps >= 1, f"a cosine schedule takes at least one step, not {self.steps}")

    def __call__(self, step: int) -> float:
        done = min((step - 1) / self.steps, 1.0)
        return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * done)) / 2.0


@dataclass(frozen=True, slots=True)
class Alternating:
    """1 in the last `on` steps of every `period`, else 0 (Parallel-R1: steps 9, 10, 19, 20, 29, ... of 10 and 2)."""

    period: int = 10
    on: int = 2

    def __post_init__(self) -> None:
        _need(1 <= self.on <= self.period, f"alternating needs 1 <= on <= period, not on={self.on} of {self.period}")

    def __call__(self, step: int) -> float:
        return float((step - 1) % self.period >= self.period - self.on)


@dataclass(frozen=True, slots=True)
class RandomShare:
    """1 with chance `share`, else 0, drawn anew for each step from (seed, step) alone: share 0.2 is one step in five.

    Terms with the same seed are on at the same steps.
    """

    share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        _need(0.0 <= self.share <= 1.0, f"random_share needs a share from 0 to 1, not {self.share}")

    def __call__(self, step: int) -> float:
        return float(mix(self.seed, step) < self.share * 2.0**64)


@dataclass(frozen=True, slots=True)
class Piecewise:
    """The first stage whose `until` (last step) is not yet passed. A stage's schedule counts from 1 where it begins.

    Linear 0 to 1 in 10 until step 20, then constant 0.5: 0.5 at step 6, 1 at 20, 0.5 at 21.
    """

    stages: tuple[tuple[int | None, Schedule], ...]

    def __call__(self, step: int) -> float:
        begin = 0
        for until, inner in self.stages:
            if until is None or step <= until:
                return inner(step - begin)
            begin = until
        raise AssertionError("the last stage has no end")


KINDS: dict[str, type[Any]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "alternating": Alternating,
    "random_share": RandomShare,
}


def make_schedule(given: Mapping[str, Any], what: str = "schedule") -> Schedule:
    """The schedule of a mapping with `kind` (default constant) and the fields of that kind. Raises RewardError.

    `what` names it in errors.

    >>> make_schedule({"kind": "alternating", "period": 10, "on": 2})(9)
    1.0
    """
    if given.get("kind") == "piecewise":
        return _piecewise(given, what)
    try:
        made: Schedule = read_kind(what, KINDS, given, RewardError, default="constant", others=("piecewise",))
    except RewardError as error:
        if str(error).startswith(what):
            raise
        raise RewardError(f"{what}: {error}") from error  # a value that its own class refuses
    return made


@dataclass(frozen=True, slots=True)
class _Stage:
    """A stage as it is written."""

    schedule: dict[str, Any]
    until: int | None = None


def _piecewise(given: Mapping[str, Any], what: str) -> Piecewise:
    raw = given.get("stages")
    _need(
        set(given) == {"kind", "stages"} and isinstance(raw, list),
        f"{what}: a piecewise schedule has a kind and stages",
    )
    stages: list[tuple[int | None, Schedule]] = []
    written = cast(list[Any], raw)
    for number, each in enumerate(written, start=1):
        _need(isinstance(each, Mapping), f"{what}, stage {number}: {each!r} is no mapping of until and schedule")
        stage = read_options(f"{what}, stage {number}", _Stage, each, RewardError)
        last, before = number == len(written), (stages[-1][0] or 0) if stages else 0
        ends_well = stage.until is None if last else stage.until is not None and stage.until > before
        _need(ends_well, f"{what}, stage {number}: until={stage.until}; they rise, and only the last stage has none")
        stages.append((stage.until, make_schedule(stage.schedule, f"{what}, stage {number}")))
    _need(bool(stages), f"{what}: a piecewise schedule needs at least one stage")
    return Piecewise(tuple(stages))


def _need(ok: bool, message: str) -> None:
    if not ok:
        raise RewardError(message)
