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


@dataclass(frozen=True)
class Scene:
    """All tokens that one call's predictions depend on, as that call read them: `sees[i]` are indices into `tokens`;
    `inputs[o]` is the index of the token whose logits say what the o-th sampled token is."""

    tokens: list[Token]
    positions: list[int]
    sees: list[set[int]]
    inputs: list[int]

    def knowers(self, token: Token, layers: int) -> set[int]:
        """Offsets of sampled tokens whose predictor is `token`, or comes to know of it within so many layers: a walk,
        not a formula."""
        known = {i for i, each in enumerate(self.tokens) if each == token}
        for _ in range(layers):
            known |= {i for i, seen in enumerate(self.sees) if seen & known}
        return {offset for offset, i in enumerate(self.inputs) if i in known}


class Meaning:
    """What every call of a trajectory saw, and where, token by token from the definition; slow on purpose."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory, self.segments = trajectory, trajectory.segments
        self.descends, self.start = cache(self._descends), cache(self._start)

    def tokens(self) -> list[Token]:
        return self.of(range(len(self.segments)))

    def of(self, segments: Iterable[int]) -> list[Token]:
        return [(s, o) for s in segments for o in range(len(self.segments[s].ids))]

    def scene(self, call: Call) -> Scene:
        thread = self.segments[call.sampled].thread
        if self.trajectory.attention == "stitched":
            return self._stitched(call)
        if self.trajectory.attention == "synchronous" and thread:
            return self._synchronous(call, thread)
        tokens = self.of((*call.context, call.sampled))
        sees = [set(range(i + 1)) for i in range(len(tokens))]
        return Scene(tokens, list(range(len(tokens))), sees, self._inputs(call, tokens))

    def _inputs(self, call: Call, tokens: list[Token]) -> list[int]:
        """The last token of the context predicts the first sampled one, that the second, and so on."""
        first = self.of(call.context)[-1]
        sampled = self.of([call.sampled])
        return [tokens.index(token) for token in [first, *sampled[:-1]][: len(sampled)]]

    def _descends(self, s: int, from_: int) -> bool:
        """Whether a walk up the parents of s meets from_."""
        return any(parent == from_ or self.descends(parent, from_) for parent in self.segments[s].parents)

    def _start(self, s: int) -> int:
        return max((self.start(p) + len(self.segments[p].ids) for p in self.segments[s].parents), default=0)

    def _stitched(self, call: Call) -> Scene:
        tokens = self.of((*call.context, call.sampled))

        def sees(a: Token, b: Token) -> bool:
            return b[1] <= a[1] if a[0] == b[0] else self.descends(a[0], b[0])

        seen = [{j for j, b in enumerate(tokens) if sees(a, b)} for a in tokens]
        return Scene(tokens, [self.start(s) + o for s, o in tokens], seen, self._inputs(call, tokens))

    def _synchronous(self, call: Call, thread: tuple[int, ...]) -> Scene:
        """What lies before the threads is flat; they see each other's headers, and sampled tokens of earlier steps."""
        together = [c for c in self.trajectory.calls if self.segments[c.sampled].thread[:1] == thread[:1]]
        names = [self.segments[c.sampled].thread for c in together]
        before = self.of(s for s in call.context if self.segments[s].thread != thread)
        tokens, kinds = list(before), [("before", 0, o) for o in range(len(before))]
        positions = list(range(len(before)))
        for name, each in zip(names, together, strict=True):
            own = self.of(s for s in each.context if self.segments[s].thread == name)
            sampled = self.of([each.sampled])
            tokens += own + sampled
            kinds += [("header", name[1], o) for o in range(len(own))]
            kinds += [("sampled", name[1], o) for o in range(len(sampled))]
            start = len(before) + (name[1] - 1) * self.trajectory.stride
            positions += range(start, start + len(own) + len(sampled))

        def sees(a: tuple[str, int, int], b: tuple[str, int, int]) -> bool:
            if a[0] == "before" or b[0] == "before":
                return b[0] == "before" and (a[0] != "before" or b[2] <= a[2])
            if a[0] == "header":
                return b[0] == "header" and b[1] == a[1] and b[2] <= a[2]
            return b[0] == "header" or b[2] < a[2] or (b[1] == a[1] and b[2] == a[2])

        seen = [{j for j, b in enumerate(kinds) if sees(a, b)} for a in kinds]
        return Scene(tokens, positions, seen, self._inputs(call, tokens))

    def call_logps(self, model: Any, call: Call) -> Tensor:
        """log p of what a call sampled: one dense forward over its scene, shared with nobody."""
        if not self.segments[call.sampled].ids:
            return torch.zeros(0)
        scene = self.scene(call)
        ids = torch.tensor([[self.segments[s].ids[o] for s, o in scene.tokens]])
        mask = torch.tensor([[j in seen for j in range(len(scene.tokens))] for seen in scene.sees])[None, None]
        logits = model(input_ids=ids, position_ids=torch.tensor([scene.positions]), attention_mask=mask).logits[0]
        chosen = torch.log_softmax(logits[scene.inputs], -1)
        return chosen.gather(-1, torch.tensor(self.segments[call.sampled].ids)[:, None])[:, 0]

    def logps(self, model: Any) -> list[Tensor]:
        """Of every call, in order."""
        return [self.call_logps(model, call) for call in self.trajectory.calls]
