"""From settings to a Reward: the kinds of terms there are, and one-line errors for what cannot be built."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from rewards.errors import RewardError
from rewards.reward import GATES, Reward, Scope, Term, Weighted
from rewards.schedule import make_schedule
from rewards.terms.answer import FormatFirst, NodeSuccess, Outcome
from rewards.terms.speed import Acceleration, Concurrency, HardwareLatency, Latency, Overlong
from rewards.terms.structure import (
    Finish,
    Instantiate,
    One,
    ParallelRatio,
    StrictFormat,
    Structure,
    Threads,
    Trigger,
)
from rewards.terms.tokens import BudgetViolation, DelegatedLength, Redundancy, TotalTokens
from rollout.options import hint, read_kind, read_options

KINDS: dict[str, type[Term]] = {
    "outcome": Outcome,
    "format_first": FormatFirst,
    "node_success": NodeSuccess,
    "acceleration": Acceleration,
    "latency": Latency,
    "hardware_latency": HardwareLatency,
    "overlong": Overlong,
    "concurrency": Concurrency,
    "one": One,
    "structure": Structure,
    "strict_format": StrictFormat,
    "trigger": Trigger,
    "parallel_ratio": ParallelRatio,
    "threads": Threads,
    "instantiate": Instantiate,
    "finish": Finish,
    "total_tokens": TotalTokens,
    "redundancy": Redundancy,
    "delegated_length": DelegatedLength,
    "budget_violation": BudgetViolation,
}
"""What `kind` may be; a term's own settings are the fields of its class."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that every term has beside its own; see Weighted."""

    weight: float = 1.0
    gate: tuple[str, ...] = ()
    floor: float | None = None
    cap: float | None = None
    standardise: bool = False
    schedule: dict[str, Any] = field(default_factory=dict[str, Any])
    scope: Scope = "all"


COMMON = tuple(Settings.__dataclass_fields__)


def make_reward(terms: Mapping[str, Mapping[str, Any]]) -> Reward:
    """The reward of `reward.terms`. A term without `kind` is of the kind it is named after. Raises RewardError.

    >>> terms = {"outcome": {}, "acceleration": {"rho": 0.5, "cap": 0.2, "gate": ["correct"]}}
    >>> make_reward(terms).terms["acceleration"].cap
    0.2
    """
    if not terms:
        raise RewardError("reward.terms is empty: nothing would be learnt; take a preset such as reward=outcome")
    made = {name: _weighted(name, given) for name, given in terms.items()}
    if not any(weighted.term.judges_answer or "correct" in weighted.gate for weighted in made.values()):
        raise RewardError("no term of reward.terms looks at the answer: add outcome, or a gate [correct]")
    return Reward(made)


def _weighted(name: str, given: Mapping[str, Any]) -> Weighted:
    what = f"reward.terms.{name}"
    if not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] (it comes from a YAML file)
        raise RewardError(f"{what}={given}: a term is a mapping of settings; remove one with ~{what}")
    if endless := [key for key, value in given.items() if not _finite(value)]:
        raise RewardError(f"{what}, option {endless[0]}: {given[endless[0]]!r} has a number that is not finite")
    own = {"kind": name} | {key: value for key, value in given.items() if key not in COMMON}
    settings = read_options(what, Settings, {k: v for k, v in given.items() if k in COMMON}, RewardError)
    for condition in settings.gate:
        if condition not in GATES:
            raise RewardError(f"{what}.gate: {condition!r} does not exist, {hint(condition, GATES)}")
    if settings.floor is not None and settings.cap is not None and settings.floor > settings.cap:
        raise RewardError(f"{what}: floor {settings.floor} is above cap {settings.cap}")
    return Weighted(
        term=read_kind(what, KINDS, own, RewardError, also=COMMON),
        weight=settings.weight,
        gate=settings.gate,
        floor=settings.floor,
        cap=settings.cap,
        standardise=settings.standardise,
        schedule=make_schedule(settings.schedule, f"{what}.schedule"),
        scope=settings.scope,
    )


def _finite(value: Any) -> bool:
    """No NaN, which would say that nothing was judged, and no infinity, at any depth."""
    if isinstance(value, Mapping):
        return all(_finite(each) for each in cast(Mapping[str, Any], value).values())
    if isinstance(value, list | tuple):
        return all(_finite(each) for each in cast(list[Any], value))
    return not isinstance(value, float) or math.isfinite(value)
