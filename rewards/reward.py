"""R = outcome + 1[correct] * (parallelization terms): what one trajectory is worth, term by term."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from rewards.verdict import Verdict
from rollout.critical_path import Lengths
from rollout.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Scored:
    """A trajectory with all that rewards and metrics look at. `flaw`: its first breach of the grammar, if any."""

    trajectory: Trajectory
    lengths: Lengths
    verdict: Verdict
    flaw: str | None = None

    @property
    def judged(self) -> bool:
        """False when the verifier itself failed, so that nobody may call this trajectory wrong."""
        return self.verdict not in ("timeout", "error")


class Term(Protocol):
    """A pure function of one scored trajectory. Its docstring is its formula, its source and a worked example."""

    def __call__(self, scored: Scored) -> float: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """`correct` if the verdict is "correct", else `wrong` (a truncated or malformed response is wrong)."""

    correct: float = 1.0
    wrong: float = 0.0

    def __call__(self, scored: Scored) -> float:
        return self.correct if scored.verdict == "correct" else self.wrong


@dataclass(frozen=True, slots=True)
class WhenCorrect:
    """The gate 1[correct] * term: a short critical path pays only when the answer is right."""

    term: Term

    def __call__(self, scored: Scored) -> float:
        return self.term(scored) if scored.verdict == "correct" else 0.0


@dataclass(frozen=True, slots=True)
class Reward:
    """The sum of named terms; NaN for a trajectory that was not judged, which advantages then leave out.

    >>> reward = Reward({"outcome": Outcome(), "acceleration": WhenCorrect(PaperAcceleration(rho=0.5, cap=0.2))})
    """

    terms: Mapping[str, Term]

    def parts(self, scored: Scored) -> dict[str, float]:
        """Each term's value, for the dashboard; all NaN when the trajectory was not judged."""
        return {name: term(scored) if scored.judged else math.nan for name, term in self.terms.items()}

    def __call__(self, scored: Scored) -> float:
        return sum(self.parts(scored).values())
