"""Many calls and trajectories of one question as one DAG, in which every token stands once."""

from collections.abc import Sequence

from rollout.orchestrator import in_order
from rollout.strategies.base import Ids, Question, Setting, StrategyError
from rollout.trajectory import Attention, Call, Event, Origin, Outcome, Segment, Trajectory

Name = tuple[int, ...]
"""Of a thread, as in `Segment.thread`: a strategy's step b has threads (b, 1), (b, 2), ..."""


class Record:
    """The DAG of one question while a strategy fills it. Segment 0 is the question's prompt.

    Segments may be added in whatever order calls end: `trajectory` puts them in an order of their own.
    """

    def __init__(self, prompt: Ids) -> None:
        self.segments: list[Segment] = [Segment("prompt", prompt)]
        self.calls: list[Call] = []
        self.notes: dict[str, int] = {}
        self.attention: Attention | None = None
        self.stride = 0
        self.thread_vectors = False

    def add(
        self, origin: Origin, ids: Ids, parents: Sequence[int], name: Name, logprobs: tuple[float, ...] | None = None
    ) -> int:
        """One more segment, which could start when all of `parents` were there; returns its index."""
        above = tuple(dict.fromkeys(parents))
        self.segments.append(Segment(origin, ids, logprobs, above, name))
        return len(self.segments) - 1

    def call(self, context: tuple[int, ...], sampled: int, event: Event) -> None:
        self.calls.append(Call(context, sampled, event))

    def note(self, what: str, count: int = 1) -> None:
        self.notes[what] = self.notes.get(what, 0) + count

    def graft(self, trajectory: Trajectory, name: Name, after: Sequence[int] = ()) -> list[int]:
        """Adds a whole trajectory as thread `name`, which waited for the segments `after`; returns where each of its
        segments is now. The question's own prompt, waiting for nothing, is shared.

        Raises StrategyError where trajectories read their tokens in ways that one trajectory cannot hold.
        """
        if trajectory.calls:
            self._agree(trajectory)
        at: list[int] = []
        for segment in trajectory.segments:
            prompt = segment.origin == "prompt"
            if prompt and not after and segment.ids == self.segments[0].ids:
                at.append(0)
                continue
            parents = [*(at[parent] for parent in segment.parents), *(after if prompt else ())]
            at.append(self.add(segment.origin, segment.ids, parents, (*name, *segment.thread), segment.logprobs))
        for call in trajectory.calls:
            self.call(tuple(at[seen] for seen in call.context), at[call.sampled], call.event)
        for what, count in trajectory.notes.items():
            self.note(what, count)
        return at

    def _agree(self, trajectory: Trajectory) -> None:
        """All responses are read in one way, and all blocks whose threads see each other lie equally far apart."""
        strides = {self.stride, trajectory.stride} - {0}
        if self.attention not in (None, trajectory.attention) or len(strides) > 1:
            raise StrategyError(
                "responses whose threads lie at different strides cannot be recorded as one: set strategy.stride"
            )
        self.attention, self.stride = trajectory.attention, max(strides, default=0)
        self.thread_vectors |= trajectory.thread_vectors

    def trajectory(self, setting: Setting, question: Question, outcome: Outcome) -> Trajectory:
        """All that was recorded; `outcome` is that of the response which the strategy chose."""
        segments, calls = in_order(self.segments, self.calls)
        return Trajectory(
            *(question.id, setting.dialect.name, segments, calls, outcome, setting.policy_version),
            attention=self.attention or "causal",
            stride=self.stride,
            thread_vectors=self.thread_vectors,
            notes=dict(sorted(self.notes.items())),
        )


def merge(setting: Setting, question: Question, trajectories: Sequence[Trajectory], chosen: int | None) -> Trajectory:
    """Independent trajectories of one question as one: number i (from 1) becomes thread (0, i). L_total is the sum of
    theirs, L_critical the longest of theirs, the outcome that of the `chosen` one (from 0; None: nothing finished)."""
    record = Record(question.prompt)
    for number, trajectory in enumerate(trajectories, start=1):
        record.graft(trajectory, (0, number))
    return record.trajectory(setting, question, outcome_of([each.outcome for each in trajectories], chosen))


def outcome_of(outcomes: Sequence[Outcome], chosen: int | None) -> Outcome:
    """That of the chosen response; where none finished, `malformed` if all broke the grammar, else `truncated`."""
    if chosen is not None:
        return outcomes[chosen]
    return "malformed" if outcomes and set(outcomes) == {"malformed"} else "truncated"
