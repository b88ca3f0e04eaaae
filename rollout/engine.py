"""The protocol every sampler speaks: token ids in, token ids and log-probs out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from rollout.errors import UserError
from rollout.view import View

Prompt = Sequence[int] | View
"""What a call sees; plain ids are a causal context of one piece."""


class EngineError(UserError, RuntimeError):
    """The sampler cannot serve a request (refused sampling, context too long, an answer that is none). Says what to
    do."""


class EngineDied(EngineError):
    """The engine itself is gone: no server, no answer in time, an error inside. Another one may serve the same call."""


@dataclass(slots=True)
class Race:
    """Calls of which the first success ends the others: the fewest tokens a success has taken so far."""

    best: int | None = None

    def won(self, tokens: int) -> None:
        """A call succeeded after so many tokens."""
        self.best = tokens if self.best is None else min(self.best, tokens)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one call samples. The whole distribution is sampled: top_p, top_k and min_p have no field, on purpose,
    because truncation would bias the importance ratio.

    >>> Sampling(max_tokens=64, stop_ids=(7,), temperature=1.0, seed=3)
    """

    max_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0
    seed: int | None = None
    banned_ids: tuple[int, ...] = ()
    """Ids that must not be sampled; the policy is then the distribution over the others."""
    race: Race | None = None
    """An engine that can may end the call, as by `max_tokens`, once it has `race.best` tokens: no more are read."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What one call sampled: `ids` (the stop id included), `logprobs` under the sampling distribution (nats)."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]


class Engine(Protocol):
    """A sampler. `complete` may be awaited by many tasks at once; the engine batches them as it likes."""

    max_context: int
    """Prompt and sampled tokens of one call together may not exceed this."""

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        """Samples one continuation. `thread` names the caller for logs and scripted engines; samplers ignore it.

        Raises EngineError when the request cannot be served.
        """
        ...


@runtime_checkable
class Together(Protocol):
    """An engine whose threads can see each other while they are sampled."""

    async def complete_together(
        self,
        prompt: Prompt,
        headers: Sequence[tuple[int, ...]],
        samplings: Sequence[Sampling],
        *,
        stride: int,
        mode: Literal["group_think", "hogwild"],
        threads: Sequence[tuple[int, ...]] = (),
    ) -> list[Completion]:
        """Samples one continuation of each header after the prompt, in lockstep: a token sees the prompt, its own
        thread, the others' headers and the tokens that they sampled in strictly earlier steps.

        group_think: header n starts at position `end of the prompt + n * stride`. hogwild: a reader sees the prompt,
        the other threads and then its own, at positions that run on. `threads` names them as in `complete`.
        """
        ...


def causal_ids(prompt: Prompt, engine: str) -> list[int]:
    """The flat ids of a causal context. Raises EngineError for any other: stock engines cannot place or hide tokens."""
    if not isinstance(prompt, View):
        return list(prompt)
    if any(prompt.threads):
        raise EngineError(f"{engine} cannot add a vector per thread: use rollout=torch, or model.thread_vectors=0")
    if not prompt.is_causal:
        raise EngineError(
            f"{engine} cannot sample a stitched join (threads that stay hidden from each other, at shared positions): "
            "use rollout=torch, or dialect.join=transcript"
        )
    return prompt.ids
