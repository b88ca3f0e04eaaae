"""Random stitched and synchronous trajectories, and what they mean, token by token, straight from the definition."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from apr_train.dag_packing import TrajectoryCall
from rollout.trajectory import Attention, Call, Event, Origin, Segment, Trajectory

Token = tuple[int, int]
"""(segment, offset)."""


# ---- trajectories


@dataclass
class Grower:
    """Writes a trajectory as the orchestrator would; few letters, so that segments repeat and prefixes are shared."""

    rng: random.Random
    prompt: tuple[int, ...]
    letters: tuple[int, ...]
    width: int = 3
    depth: int = 3
    empty: float = 0.2
    """Chance of a forced segment, or of what a thread samples, to have no ids."""
    forks: float = 0.6
    segments: list[Segment] = field(default_factory=list[Segment])
    calls: list[Call] = field(default_factory=list[Call])

    def ids(self, most: int, least: int = 1) -> tuple[int, ...]:
        return tuple(self.rng.choices(self.letters, k=self.rng.randint(least, most)))

    def add(self, origin: Origin, ids: tuple[int, ...], parents: tuple[int, ...], thread: tuple[int, ...]) -> int:
        logprobs = (-1.0,) * len(ids) if origin == "sampled" else None
        self.segments.append(Segment(origin, ids, logprobs, parents, thread))
        return len(self.segments) - 1

    def force(self, context: list[int], thread: tuple[int, ...], *parents: int) -> None:
        """A forced segment at the end of the context; sometimes empty, sometimes none, where it joins no threads."""
        if len(parents) < 2 and self.rng.random() < self.empty / 2:
            return
        ids = () if self.rng.random() < self.empty else self.ids(3)
        context.append(self.add("forced", ids, parents or (context[-1],), thread))

    def sample(self, context: list[int], thread: tuple[int, ...], event: Event) -> None:
        ids = () if thread and self.rng.random() < self.empty else self.ids(5)
        seen = tuple(context)
        context.append(self.add("sampled", ids, (context[-1],), thread))
        self.calls.append(Call(seen, context[-1], event))

    def block(self, context: list[int], name: tuple[int, ...], number: int, threads: int, depth: int) -> None:
        self.force(context, name)
        begin = len(context)
        views = [list(context) for _ in range(threads)]
        for k, view in enumerate(views, 1):
            self.force(view, (*name, number, k))
        for k, view in enumerate(views, 1):
            self.thread(view, (*name, number, k), depth - 1)
            if self.rng.random() < 0.3:
                self.force(view, (*name, number, k))
        ends = tuple(view[-1] for view in views)
        for view in views:
            context += view[begin:]
        self.force(context, name, *ends)

    def thread(self, context: list[int], name: tuple[int, ...], depth: int) -> None:
        blocks = self.rng.randint(1, 2) if depth and self.rng.random() < self.forks else 0
        for number in range(blocks):
            self.sample(context, name, "fork")
            self.block(context, name, number, self.rng.randint(1, self.width), depth)
        self.sample(context, name, "join" if name else "final")


def random_trajectory(
    rng: random.Random,
    prompt: tuple[int, ...],
    letters: Iterable[int],
    attention: Attention = "stitched",
    *,
    end: tuple[int, ...] = (),
    **options: Any,
) -> Trajectory:
    """Nested blocks of 1 to `width` threads, `depth` deep, with empty threads, headers, closes and joins.

    Synchronous ones are flat. `end`: ids that the root's last call ends with.
    """
    if attention == "synchronous":
        options["depth"] = 1
    grower = Grower(rng, prompt, tuple(letters), **options)
    context = [grower.add("prompt", prompt, (), ())]
    grower.thread(context, (), grower.depth)
    last = grower.segments[context[-1]]
    ids = last.ids + end
    grower.segments[context[-1]] = replace(last, ids=ids, logprobs=(-1.0,) * len(ids))
    stride = rng.choice((0, 1, 7)) if attention == "synchronous" else 0
    return Trajectory(
        *("p", "test", tuple(grower.segments), tuple(grower.calls), "answered"), attention=attention, stride=stride
    )


LETTERS = range(5, 9)
KINDS: tuple[Attention, ...] = ("stitched", "synchronous")


def group(seed: int, *kinds: Attention, **options: Any) -> list[Trajectory]:
    """Trajectories of one prompt."""
    rng = random.Random(seed)
    prompt = tuple(rng.choices(range(5, 30), k=rng.randint(1, 6)))
    return [random_trajectory(rng, prompt, LETTERS, kind, **options) for kind in kinds]


def calls_of(trajectories: list[Trajectory]) -> list[TrajectoryCall]:
    return [TrajectoryCall(each, index) for each in trajectories for index in range(len(each.calls))]


def error(ours: Tensor, reference: Tensor) -> float:
    return float(((ours - reference).norm() / reference.norm()).detach())


def one_call(**changes: Any) -> Trajectory:
    segments = (Segment("prompt", (5, 6)), Segment("sampled", (7,), (-1.0,), (0,)))
    plain: dict[str, Any] = {"segments": segments, "calls": (Call((0,), 1, "final"),), "attention": "stitched"}
    return Trajectory(problem_id="p", dialect="test", outcome="answered", **plain | changes)


# ---- what they mean


class Meaning:
    """Who sees whom and where each token lies, one question at a time, from the definition; slow on purpose."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory, self.segments = trajectory, trajectory.segments
        self.descends, self.start, self.headers = cache(self._descends), cache(self._start), cache(self._headers)

    def _descends(self, s: int, from_: int) -> bool:
        """Whether a walk up the parents of s meets from_."""
        return any(parent == from_ or self.descends(parent, from_) for parent in self.segments[s].parents)

    def _start(self, s: int) -> int:
        segment = self.segments[s]
        start = max((self.start(p) + len(self.segments[p].ids) for p in segment.parents), default=0)
        enters = segment.thread and all(self.segments[p].thread != segment.thread for p in segment.parents)
        if self.trajectory.attention == "synchronous" and enters:
            start += (segment.thread[1] - 1) * self.trajectory.stride
        return start

    def _headers(self, thread: tuple[int, ...]) -> set[int]:
        own = [s for s, segment in enumerate(self.segments) if segment.thread == thread]
        (sampled,) = (s for s in own if self.segments[s].origin == "sampled")
        return {s for s in own if self.descends(sampled, s)}

    def position(self, token: Token) -> int:
        return self.start(token[0]) + token[1]

    def sees(self, a: Token, b: Token) -> bool:
        """Whether token a sees token b, itself included."""
        if a[0] == b[0]:
            return b[1] <= a[1]
        if self.descends(a[0], b[0]):
            return True
        mine, other = self.segments[a[0]], self.segments[b[0]]
        synchronous = self.trajectory.attention == "synchronous" and mine.origin == "sampled"
        if not synchronous or not mine.thread or not other.thread or mine.thread[0] != other.thread[0]:
            return False
        return b[0] in self.headers(other.thread) or (other.origin == "sampled" and b[1] < a[1])

    def tokens(self) -> list[Token]:
        return [(s, o) for s, segment in enumerate(self.segments) for o in range(len(segment.ids))]

    def predictor(self, token: Token, call: Call) -> Token:
        """The token whose logits say what a sampled token is."""
        if token[1]:
            return token[0], token[1] - 1
        last = [s for s in call.context if self.segments[s].ids][-1]
        return last, len(self.segments[last].ids) - 1

    def sampled(self) -> dict[Token, Token]:
        """Each sampled token with its predictor."""
        return {
            (call.sampled, o): self.predictor((call.sampled, o), call)
            for call in self.trajectory.calls
            for o in range(len(self.segments[call.sampled].ids))
        }

    def dense(self, tokens: list[Token]) -> tuple[Tensor, Tensor, Tensor]:
        """ids (N,), positions (N,) and mask (N, N) of these tokens."""
        ids = torch.tensor([self.segments[s].ids[o] for s, o in tokens])
        positions = torch.tensor([self.position(token) for token in tokens])
        return ids, positions, torch.tensor([[self.sees(a, b) for b in tokens] for a in tokens])

    def call_logps(self, model: Any, call: Call) -> Tensor:
        """log p of what a call sampled: one dense forward over its inputs and all they see, shared with nobody."""
        targets = [(call.sampled, o) for o in range(len(self.segments[call.sampled].ids))]
        if not targets:
            return torch.zeros(0)
        inputs = [self.predictor(target, call) for target in targets]
        everything = [b for b in self.tokens() if any(self.sees(a, b) for a in inputs)]
        ids, positions, mask = self.dense(everything)
        logits = model(input_ids=ids[None], position_ids=positions[None], attention_mask=mask[None, None]).logits[0]
        chosen = torch.log_softmax(logits[[everything.index(token) for token in inputs]], -1)
        return chosen.gather(-1, torch.tensor(self.segments[call.sampled].ids)[:, None])[:, 0]

    def logps(self, model: Any) -> list[Tensor]:
        """Of every call, in order."""
        return [self.call_logps(model, call) for call in self.trajectory.calls]
