"""An engine that says what it was told to: demonstrations go through the same orchestrator as rollouts."""

from collections.abc import Sequence
from typing import Literal

from rollout.dialects.base import Script
from rollout.engine import Completion, EngineError, Prompt, Sampling


class ReplayEngine:
    """Serves each thread its scripted turns, cut where a real sampler would stop; all log-probs are 0.

    >>> engine = ReplayEngine({(): [(5, 6, 7)]}, max_context=100)  # the root's only turn
    """

    def __init__(self, script: Script, max_context: int) -> None:
        self.max_context = max_context
        self._turns = {thread: list(turns) for thread, turns in script.items()}
        self.tokens = sum(len(ids) for turns in self._turns.values() for ids in turns)
        self.cut = False
        """Whether a turn did not fit its budget, so that the script cannot be followed any more."""

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        """The thread's next turn. Raises EngineError when the script has none left for it."""
        if not self._turns.get(thread):
            raise EngineError(f"the script has no further turn for thread {thread}")
        ids = self._turns[thread].pop(0)
        stop = next((i + 1 for i, token in enumerate(ids) if token in sampling.stop_ids), None)
        if stop is not None and stop <= sampling.max_tokens:
            return Completion(ids[:stop], (0.0,) * stop, "stop")
        self.cut |= len(ids) > sampling.max_tokens
        ids = ids[: sampling.max_tokens]
        return Completion(ids, (0.0,) * len(ids), "length")

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
        """Each thread's next turn: a script does not mind who sees it."""
        return [await self.complete(prompt, each, name) for each, name in zip(samplings, threads, strict=True)]
