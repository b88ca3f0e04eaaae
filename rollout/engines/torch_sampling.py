"""How the torch engine draws tokens: vLLM's noise, one generator a call, whatever the batch."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rollout.engine import Completion, Sampling
from rollout.engines.torch_attention import Context
from rollout.engines.torch_cache import Slab, State
from rollout.view import View


@dataclass(eq=False, slots=True)
class Call:
    """One request on its way: in the queue until it has a row, then one token longer with each step."""

    view: View
    sampling: Sampling
    generator: torch.Generator
    future: "asyncio.Future[Completion]"
    context: Context
    states: list[State]
    begin: State
    """The state that the sampled tokens follow."""
    bytes: int
    """Of the row that the call may come to need."""
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    slab: Slab = field(init=False)
    row: int = -1
    length: int = 0

    def take(self, token: int, logprob: float) -> Completion | None:
        """Appends a sampled token; the completion if it was the last."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        most, race = self.sampling.max_tokens, self.sampling.race
        if race is not None and race.best is not None:
            most = min(most, race.best)
        if token in self.sampling.stop_ids:
            return Completion(tuple(self.ids), tuple(self.logprobs), "stop")
        return Completion(tuple(self.ids), tuple(self.logprobs), "length") if len(self.ids) >= most else None


def sample(logits: Tensor, calls: Sequence[Call]) -> tuple[Tensor, Tensor]:
    """A token for each call (calls,) and its log-prob under the distribution it was drawn from (calls,).

    logits (calls, vocabulary), float32, which are overwritten.
    """
    banned: dict[tuple[int, ...], list[int]] = {}
    for row, call in enumerate(calls):
        if call.sampling.banned_ids:
            banned.setdefault(call.sampling.banned_ids, []).append(row)
    for ids, rows in banned.items():
        logits[torch.tensor(rows)[:, None], list(ids)] = -torch.inf
    heat = [call.sampling.temperature for call in calls]
    if any(each not in (0.0, 1.0) for each in heat):
        logits /= torch.tensor([each or 1.0 for each in heat], device=logits.device)[:, None]
    logprobs = logits.log_softmax(-1)
    if any(heat):
        noise = torch.ones_like(logits)
        for row, call in zip(noise.unbind(), calls, strict=True):
            if call.sampling.temperature:
                row.exponential_(generator=call.generator)
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
