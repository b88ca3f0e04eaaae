"""The protocol every sampler speaks: token ids in, token ids and log-probs out."""

from dataclasses import dataclass
from typing import Literal, Protocol

from rollout.errors import UserError


class EngineError(UserError, RuntimeError):
    """The sampler cannot serve a request (dead server, refused sampling, context too long). Says what to do."""


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

    async def complete(self, prompt_ids: list[int], sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        """Samples one continuation. `thread` names the caller for logs and scripted engines; samplers ignore it.

        Raises EngineError when the request cannot be served.
        """
        ...
