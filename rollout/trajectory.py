"""What one rollout produced: segments of token ids and the calls that sampled them, as a DAG."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from rollout.view import View

Origin = Literal["prompt", "sampled", "forced"]
Event = Literal["fork", "wait", "join", "final", "malformed", "truncated", "cancelled", "kept"]
"""How a call ended: it forked; it waits for threads that it forked earlier; a thread closed itself and joins its
parent; the response is complete; a breach of the grammar; out of tokens; a sibling ended the block first; or nothing
ended: a request is recorded as two calls where later contexts keep only its first part, or others go on from a thought
that a strategy sampled (`kept`)."""
Outcome = Literal["answered", "forced_answer", "malformed", "truncated"]
Attention = Literal["causal", "stitched", "synchronous", "hogwild"]
"""How the tokens of a call's context saw each other. `causal`: each all before it, as any engine reads flat ids.
`stitched`: each its own segment's earlier ones and, whole, the segments that its own descends from by `parents`, which
also place it: a segment starts where its longest parent ends. `synchronous`: threads are sampled as stitched ones, and
see of each other all forced headers and what was sampled in strictly earlier steps; thread k of a block starts
(k - 1) * `stride` positions later (GroupThink); the root and later blocks read them as flat ids. `hogwild`: the same
with positions of its own for every reader, which nothing trains."""


class TrajectoryError(ValueError):
    """A trajectory breaks its own rules: a dangling index, log-probs of the wrong length, a cycle."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens of one origin.

    `parents` are indices of the segments that must be complete before this one can start: the edges of the
    critical path. `logprobs` (one per id, nats, of the sampling policy) exist exactly for sampled segments.
    `thread` says whose it is: `()` is the root, `(b, k)` the k-th thread (from 1) that the root forked in its turn b
    (from 0), `(b, k, b2, k2)` a thread nested in that one.

    >>> Segment("sampled", (5, 6), (-0.1, -2.0), parents=(0,))  # two tokens decoded once segment 0 was there
    """

    origin: Origin
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    parents: tuple[int, ...] = ()
    thread: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        """Of its thread within the block, from 1; 0 of the root's."""
        return self.thread[-1] if self.thread else 0


@dataclass(frozen=True, slots=True)
class Call:
    """One generation request: the segments the model saw, in order, and the one it sampled.

    `event` is how the dialect read its end. The call's thread is the thread of the segment it sampled.
    """

    context: tuple[int, ...]
    sampled: int
    event: Event


@dataclass(frozen=True, slots=True)
class Trajectory:
    """All that one rollout produced for one prompt; recorded from the ids sent and received, never from text.

    The answer-bearing text is the root's last call. `policy_version` counts the weight updates the sampler had seen.

    >>> prompt, think = Segment("prompt", (1, 2)), Segment("sampled", (3,), (-0.5,), parents=(0,))
    >>> trajectory = Trajectory("p0", "threadweaver", (prompt, think), (Call((0,), 1, "final"),), "answered")
    >>> trajectory.context_ids(trajectory.calls[0])
    [1, 2]
    """

    problem_id: str
    dialect: str
    segments: tuple[Segment, ...]
    calls: tuple[Call, ...]
    outcome: Outcome
    policy_version: int = 0
    attention: Attention = "causal"
    stride: int = 0
    thread_vectors: bool = False
    """Whether the model added the learned vector of a thread's number to the keys and values of its tokens."""
    notes: dict[str, int] = field(default_factory=dict[str, int])
    """Counted happenings on the way, e.g. {"thread/forced close": 1}."""

    def __post_init__(self) -> None:
        count = len(self.segments)
        for index, segment in enumerate(self.segments):
            if (segment.logprobs is not None) != (segment.origin == "sampled"):
                raise TrajectoryError(f"segment {index} ({segment.origin}): log-probs belong to sampled segments only")
            if segment.logprobs is not None and len(segment.logprobs) != len(segment.ids):
                raise TrajectoryError(f"segment {index}: {len(segment.ids)} ids but {len(segment.logprobs)} log-probs")
            if any(not 0 <= parent < index for parent in segment.parents):
                raise TrajectoryError(f"segment {index}: parents {segment.parents} must come before it")
        for index, call in enumerate(self.calls):
            if any(not 0 <= used < count for used in (*call.context, call.sampled)):
                raise TrajectoryError(f"call {index} names a segment outside 0..{count - 1}")
            if self.segments[call.sampled].origin != "sampled":
                raise TrajectoryError(f"call {index} says it sampled a {self.segments[call.sampled].origin} segment")
        if self.thread_vectors and self.attention != "stitched":
            raise TrajectoryError(f"threads have vectors in stitched trajectories only, not in {self.attention} ones")

    def _check_types(self) -> None:
        """TypeError for the first value that is not of its field's type, which a file can hold and no engine gives."""
        named = (("outcome", self.outcome, Outcome), ("attention", self.attention, Attention))
        origins = (("origin", segment.origin, Origin) for segment in self.segments)
        for name, value, known in (*named, *origins, *(("event", call.event, Event) for call in self.calls)):
            if value not in get_args(known):
                raise TypeError(f"{name} {value!r} is none of {', '.join(get_args(known))}")
        for value in (self.problem_id, self.dialect):
            if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance] (it comes from a file)
                raise TypeError(f"{value!r} is no text")
        numbers = [*(call.sampled for call in self.calls), *self.notes.values(), self.policy_version, self.stride]
        for each in (*((*s.ids, *s.parents, *s.thread) for s in self.segments), *(c.context for c in self.calls)):
            numbers += each
        if odd := [value for value in numbers if type(value) is not int]:
            raise TypeError(f"{odd[0]!r} is no whole number")
        if any(value != value for segment in self.segments for value in segment.logprobs or ()):
            raise TypeError("a log-prob is NaN")

    def ids(self, segments: tuple[int, ...]) -> list[int]:
        """The token ids of these segments, one after the other."""
        return [token for index in segments for token in self.segments[index].ids]

    def context_ids(self, call: Call) -> list[int]:
        """Exactly the ids that were sent for `call`."""
        return self.ids(call.context)

    def view(self, call: Call) -> View:
        """What `call` saw, one piece per segment of its context. Raises TrajectoryError where a view cannot say it."""
        attention = "causal" if self.is_flat(call) else self.attention
        number = self.segments[call.sampled].number if self.thread_vectors else None
        return look(self.segments, call.context, attention, number)

    def is_flat(self, call: Call) -> bool:
        """Whether the ids of its context, one after the other, are all that `call` saw."""
        lockstep = self.attention in ("synchronous", "hogwild")
        return self.attention == "causal" or (lockstep and not self.segments[call.sampled].thread)

    def response_ids(self) -> list[int]:
        """What the root read and wrote after the prompt, joins included: the transcript a person sees."""
        root = [call for call in self.calls if not self.segments[call.sampled].thread]
        seen = (*root[-1].context, root[-1].sampled) if root else ()
        return self.ids(tuple(i for i in seen if self.segments[i].origin != "prompt"))

    def root_ids(self) -> list[int]:
        """The response without what threads wrote: the only place where the reasoning ends and the answer stands."""
        root = (s for s in self.segments if not s.thread and s.origin != "prompt")
        return [token for segment in root for token in segment.ids]

    def rows(self) -> Iterator[tuple[list[int], tuple[int, ...], tuple[float, ...]]]:
        """Training rows, one per call: (context ids, sampled ids, their log-probs)."""
        for call in self.calls:
            sampled = self.segments[call.sampled]
            assert sampled.logprobs is not None  # checked in __post_init__
            yield self.context_ids(call), sampled.ids, sampled.logprobs

    def to_json(self) -> str:
        """One JSON line; `from_json` gives back an equal trajectory."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "Trajectory":
        """Reads a line written by `to_json`. Raises TrajectoryError when the line is not such a trajectory."""
        try:
            raw: dict[str, Any] = json.loads(line)
            segments = tuple(
                Segment(s["origin"], tuple(s["ids"]), _floats(s["logprobs"]), tuple(s["parents"]), tuple(s["thread"]))
                for s in raw.pop("segments")
            )
            calls = tuple(Call(tuple(c["context"]), c["sampled"], c["event"]) for c in raw.pop("calls"))
            read = cls(segments=segments, calls=calls, **raw)
            read._check_types()
            return read
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise TrajectoryError(f"not a trajectory line ({error!r}): {line[:80]!r}") from error


def look(segments: Sequence[Segment], context: Sequence[int], attention: Attention, number: int | None = None) -> View:
    """The view of a call whose context are these segments, in this order, of a trajectory that may still be growing.

    `number`, where threads have vectors: that of the thread which samples. A prompt sees nothing before it, whatever it
    waited for.
    """
    pieces = [segments[index].ids for index in context]
    if attention == "causal":
        return View.causal(pieces)
    if attention != "stitched":
        raise TrajectoryError("threads that see each other token by token have no view of pieces")
    place = {index: at for at, index in enumerate(context)}
    above = [() if segments[index].origin == "prompt" else segments[index].parents for index in context]
    threads = () if number is None else (*(segments[index].number for index in context), number)
    return View.stitched(pieces, [[place[parent] for parent in parents] for parents in above], threads)


def _floats(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
