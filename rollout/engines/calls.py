"""What the engines share around a call: check it, seed it, run many together, count."""

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rollout.engine import EngineError, Sampling

Result = TypeVar("Result")

VECTORS_KEY = "apr_thread_vectors"
"""In a model's config: for how many threads it has a learned vector (see `thread_vectors`)."""

# How many turns of the event loop without a new request mean that every caller who could go on has done so:
# the hops from a finished call over the gather of its siblings to the next call.
_QUIET_TURNS = 8


@dataclass(slots=True)
class EngineStats:
    """What the engine did since it was built (or since the caller put in a fresh one)."""

    steps: int = 0
    step_seconds: float = 0.0
    """Wall time inside the engine's step."""
    sampled_tokens: int = 0
    prompt_tokens: int = 0
    """Asked for; `prefilled_tokens` of them were computed."""
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were held already; `cached_tokens / prompt_tokens` is the hit rate."""


def check_stock(model: str | Path, engine: str) -> None:
    """Raises EngineError for a model folder that a stock engine would serve as another model: with thread vectors."""
    try:
        config: Any = json.loads((Path(model) / "config.json").read_text())
    except (OSError, ValueError):
        return  # a name of the hub, or a folder of which the engine itself says what is wrong
    if isinstance(config, dict) and VECTORS_KEY in config:
        raise EngineError(f"{model} has a learned vector per thread, which {engine} cannot add: use rollout=torch")


def check_call(prompt_ids: Sequence[int], sampling: Sampling, max_context: int) -> None:
    """Raises EngineError for a call that asks for nothing, or for more than the context holds."""
    if not prompt_ids or sampling.max_tokens < 1:
        raise EngineError(f"nothing to sample: {len(prompt_ids)} prompt tokens, max_tokens={sampling.max_tokens}")
    if len(prompt_ids) + sampling.max_tokens > max_context:
        raise EngineError(
            f"{len(prompt_ids)} prompt tokens and max_tokens={sampling.max_tokens} do not fit model.max_context="
            f"{max_context}: ask for less, or raise it"
        )


class Seeds:
    """Seeds for calls: the caller's own, or the next of a stream, in the order of the calls.

    Both are folded to 32 bits, because torch's CPU generators read no more: without it, seeds that differ only in
    their high bits would sample the same tokens.

    >>> Seeds(0).of(Sampling(max_tokens=1, stop_ids=(), seed=(1 << 32) + 5))
    4
    """

    def __init__(self, seed: int) -> None:
        self._stream = random.Random(seed)

    def of(self, sampling: Sampling) -> int:
        """A seed in [0, 2**32)."""
        seed = self._stream.getrandbits(32) if sampling.seed is None else sampling.seed
        return (seed ^ seed >> 32) & 0xFFFFFFFF


async def together(coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Awaits all; results in order. When one raises, the others are cancelled and have ended before it goes on."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settle(calls: Callable[[], int]) -> None:
    """Lets every caller that can go on do so; `calls` counts the requests that have come."""
    quiet, seen = 0, calls()
    while quiet < _QUIET_TURNS:
        await asyncio.sleep(0)
        quiet, seen = (quiet + 1, seen) if calls() == seen else (0, calls())


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its class: vLLM's messages run over many lines."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
