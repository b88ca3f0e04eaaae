"""How the torch engine draws tokens: vLLM's noise, one generator a call, whatever the batch."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rollout.engine import Completion, Sampling
from rollout.engines.torch_attention import Context
from rollout.engines.torch_cache import Slab, State
from rollout.view import View


@dataclass(eq=False, slots=True)
class Stream:
    """What is sampled for one completion, and how."""

    sampling: Sampling
    generator: torch.Generator
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])

    finish: Literal["stop", "length"] | None = None

    def take(self, token: int, logprob: float) -> bool:
        """Appends a sampled token; whether it was the last."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        most, race = self.sampling.max_tokens, self.sampling.race
        if race is not None and race.best is not None:
            most = min(most, race.best)
        if token in self.sampling.stop_ids:
            self.finish = "stop"
        elif len(self.ids) >= most:
            self.finish = "length"
        return self.finish is not None

    @property
    def completion(self) -> Completion:
        """Once the last token is there."""
        assert self.finish is not None
        return Completion(tuple(self.ids), tuple(self.logprobs), self.finish)


@dataclass(eq=False, slots=True)
class Call:
    """One request on its way: in the queue until it has a row, then one token longer with each step."""

    view: View
    stream: Stream
    future: "asyncio.Future[Completion]"
    context: Context
    states: list[State]
    begin: State
    """The state that the sampled tokens follow."""
    bytes: int
    """Of the row that the call may come to need."""
    size: ClassVar[int] = 1
    """Completions."""
    slab: Slab = field(init=False)
    row: int = -1
    length: int = 0

    @property
    def streams(self) -> tuple[Stream]:
        return (self.stream,)


def sample(logits: Tensor, streams: Sequence[Stream]) -> tuple[Tensor, Tensor]:
    """A token for each stream (streams,) and its log-prob under the distribution it was drawn from (streams,).

    logits (streams, vocabulary), float32, which are overwritten.
    """
    banned: dict[tuple[int, ...], list[int]] = {}
    for row, stream in enumerate(streams):
        if stream.sampling.banned_ids:
            banned.setdefault(stream.sampling.banned_ids, []).append(row)
    for ids, rows in banned.items():
        logits[torch.tensor(rows)[:, None], list(ids)] = -torch.inf
    heat = [stream.sampling.temperature for stream in streams]
    if any(each not in (0.0, 1.0) for each in heat):
        logits /= torch.tensor([each or 1.0 for each in heat], device=logits.device)[:, None]
    logprobs = logits.log_softmax(-1)
    if any(heat):
        noise = torch.ones_like(logits)
        for row, stream in zip(noise.unbind(), streams, strict=True):
            if stream.sampling.temperature:
                row.exponential_(generator=stream.generator)
        tokens = logits.softmax(-1).div_(noise).argmax(-1)
    else:
        tokens = logits.argmax(-1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def exponential_noise(seed: int, steps: int, vocabulary: int, device: torch.device | str = "cpu") -> Tensor:
    """The noise of a call's first tokens, (steps, vocabulary): token t is the argmax of probability / noise[t].

    vLLM's rule for a call with a seed: one generator a call, seeded once, and one draw of a whole vocabulary of
    exponentials per sampled token. It depends on seed, token index, vocabulary and kind of device alone, never on the
    batch. (vLLM 0.31 on a CPU draws otherwise in a batch that has no call with a seed; its engine here seeds all.)
    """
    generator = torch.Generator(device)
    generator.manual_seed(seed)
    return torch.stack([torch.empty(vocabulary, device=device).exponential_(generator=generator) for _ in range(steps)])


def gumbel(seed: int, step: int, vocabulary: int, device: torch.device | str = "cpu") -> Tensor:
    """The same as Gumbel noise (vocabulary,) of token `step` (from 0): it is the argmax of log-prob + noise."""
    return -exponential_noise(seed, step + 1, vocabulary, device)[step].log()
