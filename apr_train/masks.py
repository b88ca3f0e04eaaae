"""Under which masks the trainer scores a call: those that its sampler saw, or a public trainer's to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from apr_train.dag_packing import PackedCalls, TrajectoryCall, pack_calls
from apr_train.packing import PackingError
from apr_train.published import pack_published, scored_calls
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory


class Masks(Protocol):
    """How calls become one packed row."""

    @property
    def exact(self) -> bool:
        """Whether a call is scored as it was sampled, so that the sampler's log-probs are the old ones of the ratio."""
        ...

    def scored(self, trajectory: Trajectory) -> list[bool]:
        """Of each call, whether it can be scored at all."""
        ...

    def structured(self, trajectory: Trajectory) -> list[bool]:
        """Of each call, whether more than the ids of its row is needed to score it."""
        ...

    def pack(
        self,
        rows: Sequence[Sequence[int]],
        context_lengths: Sequence[int],
        calls: Sequence[TrajectoryCall | None],
        trees: Sequence[int] | None = None,
    ) -> PackedCalls:
        """Packs calls, given as rows of ids or, where those do not do, as calls of their trajectories."""
        ...


class Exact:
    """What was sampled."""

    exact = True

    def scored(self, trajectory: Trajectory) -> list[bool]:
        """All."""
        return [True] * len(trajectory.calls)

    def structured(self, trajectory: Trajectory) -> list[bool]:
        """Those whose context is no flat text."""
        return [not trajectory.is_flat(call) for call in trajectory.calls]

    def pack(
        self,
        rows: Sequence[Sequence[int]],
        context_lengths: Sequence[int],
        calls: Sequence[TrajectoryCall | None],
        trees: Sequence[int] | None = None,
    ) -> PackedCalls:
        """See `pack_calls`."""
        return pack_calls(rows, context_lengths, calls, trees)


EXACT = Exact()


@dataclass(frozen=True)
class AsPublished:
    """A public trainer's masks and positions, one of `config.PUBLIC_MASKS`. Log-probs of the sampler are of another
    policy and are not used: as in those trainers, the ratio of an update is that of its own log-probs."""

    preset: str
    tokens: Tokens
    exact = False

    def scored(self, trajectory: Trajectory) -> list[bool]:
        """Those that stand in the transcript; none where the published parser refuses it."""
        return scored_calls(trajectory, self.preset, self.tokens)

    def structured(self, trajectory: Trajectory) -> list[bool]:
        """All: the mask is the whole transcript's."""
        return [True] * len(trajectory.calls)

    def pack(
        self,
        rows: Sequence[Sequence[int]],
        context_lengths: Sequence[int],
        calls: Sequence[TrajectoryCall | None],
        trees: Sequence[int] | None = None,
    ) -> PackedCalls:
        """See `pack_published`; rows without a call are those that train nothing."""
        found = [call for call in calls if call is not None]
        if not found:
            return pack_calls(rows, context_lengths, calls, trees)
        if len(found) < len(rows):
            raise PackingError("rows of ids and calls of transcripts cannot be packed together under a public mask")
        return pack_published(found, self.preset, self.tokens)


def masks_of(preset: str, tokens: Tokens) -> Masks:
    """`dialect.mask`: exact, or one of `config.PUBLIC_MASKS`."""
    return EXACT if preset == "exact" else AsPublished(preset, tokens)
