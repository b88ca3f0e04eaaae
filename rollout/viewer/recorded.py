"""What the viewer shows of one rollout: the trajectory and what was made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rollout.errors import UserError
from rollout.trajectory import Trajectory


class ViewerError(UserError, ValueError):
    """Rollouts cannot be shown: a token id that the tokenizer lacks, a number too large for the page."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One line of a file of rollouts. Those of one step and one problem are a group.

    >>> Recorded(10, trajectory, "correct", reward=1.15, advantage=0.05, terms={"outcome": 1.0, "acceleration": 0.15})
    """

    step: int
    trajectory: Trajectory
    verdict: str
    reward: float | None = None
    """None where the verifier failed, so that nothing was judged."""
    advantage: float | None = None
    """Of the root."""
    flaw: str | None = None
    terms: Mapping[str, float] = field(default_factory=dict[str, float])
    """Summands of the reward, by the names of their terms; empty where they were not recorded."""
    trainer_logprobs: Sequence[Sequence[float] | None] | None = None
    """The trainer's log-probs of each call's sampled tokens, nats; None where they were not recorded."""
    thread_verdicts: Mapping[tuple[int, ...], float] = field(default_factory=dict[tuple[int, ...], float])
    """0 to 1, of the threads that the task judged."""
