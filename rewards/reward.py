"""R = sum over terms of weight * schedule(step) * gate * clip(term): what each trajectory of a group is worth."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from rewards.schedule import Constant, Schedule
from rewards.scored import Group, Scored
from rewards.terms.answer import NodeSuccess

Scope = Literal["all", "root", "threads"]
"""Whose calls a term's reward goes to: all of the trajectory's, the root's only, or the threads' only."""

GATES: dict[str, Callable[[Scored], bool]] = {
    "correct": lambda scored: scored.correct,
    "wrong": lambda scored: not scored.correct,
    "parallel": lambda scored: scored.lengths.blocks > 0,
    "sequential": lambda scored: scored.lengths.blocks == 0,
    "well_formed": lambda scored: scored.flaw is None,
    "malformed": lambda scored: scored.flaw is not None,
}
"""Conditions that a term can ask for; several must all hold."""


class Term(Protocol):
    """A pure function of one scored trajectory and its group. Its docstring: formula, source, worked example."""

    judges_answer: ClassVar[bool]
    """True for a term that says whether the answer is right; the others shape how it was reached."""

    def __call__(self, scored: Scored, group: Group) -> float: ...


@dataclass(frozen=True, slots=True)
class Part:
    """What one term gave one trajectory, and why. Not judged: value NaN."""

    value: float
    """Summand of the reward: weight * schedule * gate * clip(term)."""
    gate: bool
    saturated: bool
    """The clip bound: a larger (or smaller) figure would have paid no more (or no less)."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """A term with the settings that any term can have.

    A term of 0.5 * eta with cap 0.2, weight 1, gate ("correct",): eta 0.25 gives 0.125 when right, eta 0.6 gives 0.2
    (saturated), and either gives 0 when wrong.
    """

    term: Term
    weight: float = 1.0
    gate: tuple[str, ...] = ()
    floor: float | None = None
    """The clip applies to the term itself, before the weight."""
    cap: float | None = None
    standardise: bool = False
    """Replaces the clipped value by its z-score among the group's members that pass the gate, 0 where all are equal."""
    schedule: Schedule = field(default_factory=Constant)
    scope: Scope = "all"

    def parts(self, group: Group, step: int) -> list[Part]:
        """One part per member of the group, in order."""
        factor = self.weight * self.schedule(step)
        gates = [member.judged and all(GATES[name](member) for name in self.gate) for member in group]
        raw = [self.term(member, group) if gate else 0.0 for member, gate in zip(group, gates, strict=True)]
        values = [self._clipped(value) for value in raw]
        bound = [gate and value != clipped for gate, value, clipped in zip(gates, raw, values, strict=True)]
        if self.standardise:
            values = _z_scores(values, gates)
        return [
            Part(factor * value if gate and factor else 0.0 if member.judged else math.nan, gate, saturated)
            for member, value, gate, saturated in zip(group, values, gates, bound, strict=True)
        ]

    def _clipped(self, value: float) -> float:
        value = value if self.floor is None else max(value, self.floor)
        return value if self.cap is None else min(value, self.cap)


def _z_scores(values: Sequence[float], gates: Sequence[bool]) -> list[float]:
    chosen = [value for value, gate in zip(values, gates, strict=True) if gate]
    mean = math.fsum(chosen) / len(chosen) if chosen else 0.0
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in chosen) / len(chosen)) if chosen else 0.0
    return [(v - mean) / deviation if gate and deviation > 1e-9 else 0.0 for v, gate in zip(values, gates, strict=True)]


@dataclass(frozen=True, slots=True)
class Reward:
    """The sum of named terms; NaN for a trajectory that was not judged, which advantages then leave out.

    >>> bonus = Weighted(Acceleration(rho=0.5), gate=("correct",), cap=0.2)
    >>> Reward({"outcome": Weighted(Outcome()), "acceleration": bonus})(group, step=1)
    [1.125, 1.0, 0.0]
    """

    terms: Mapping[str, Weighted]

    def parts(self, group: Group, step: int) -> dict[str, list[Part]]:
        """Each term's parts, by its name."""
        return {name: weighted.parts(group, step) for name, weighted in self.terms.items()}

    def __call__(self, group: Group, step: int) -> list[float]:
        """The reward of each member of the group at a training step, counted from 1."""
        parts = self.parts(group, step)
        return [sum(parts[name][i].value for name in parts) for i in range(len(group.members))]

    @property
    def node_bonus(self) -> float | None:
        """The bonus of its node_success term, which `credit: node_local` pays to every node; None without one."""
        return next((each.term.bonus for each in self.terms.values() if isinstance(each.term, NodeSuccess)), None)

    def schedule(self, step: int) -> dict[str, float]:
        """Each term's schedule factor at this step."""
        return {name: weighted.schedule(step) for name, weighted in self.terms.items()}
