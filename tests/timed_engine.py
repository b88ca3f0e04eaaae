"""An engine with a clock of its own: a call takes as long as it has tokens, any number at once; it counts by itself."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from helpers import toy_tokens

from rollout.dialects import make_dialect
from rollout.engine import Completion, Prompt, Sampling
from rollout.engines.calls import check_call
from rollout.orchestrator import Budget
from rollout.strategies import make_strategy
from rollout.strategies.base import Question, Setting, Solved
from rollout.view import View

Result = TypeVar("Result")
Policy = Callable[[list[int], Sampling], Completion]
TOKENS = toy_tokens("sequential")
DIALECT = make_dialect("sequential", TOKENS)
BUDGET = Budget(response=40, answer=6, threads=8, blocks=4)


def babble(ids: list[int], sampling: Sampling) -> Completion:
    """What depends on context and seed alone: a few letters, the end of the reasoning now and then, often a stop.

    No call ends with the end of the reasoning, so that one before a call is the client's.
    """
    rng = random.Random(repr((ids, sampling.seed, sampling.max_tokens, sampling.stop_ids)))
    count = min(sampling.max_tokens, rng.randint(1, 12))
    letters = [*TOKENS.text("ab1 "), DIALECT.end_think]
    found = [*rng.choices(letters, k=count - 1), rng.choice(letters[:-1])]
    stopped = bool(sampling.stop_ids) and rng.random() < 0.8
    if stopped:
        found[-1] = rng.choice(sorted(sampling.stop_ids))
    return Completion(tuple(found), tuple(-rng.random() for _ in found), "stop" if stopped else "length")


def says(reply: Callable[[str, Sampling], str]) -> Policy:
    """A policy made of text in which `<think>`, `</think>` and the eos are meant; cut at stops and at the limit."""

    def policy(ids: list[int], sampling: Sampling) -> Completion:
        text = reply(TOKENS.decode(ids), sampling)
        found: list[int] = TOKENS.tokenizer.encode(text, add_special_tokens=False)
        end = next((at + 1 for at, token in enumerate(found) if token in sampling.stop_ids), None)
        most = min(sampling.max_tokens, len(found) if end is None else end)
        finish = "stop" if end is not None and end <= most else "length"
        return Completion(tuple(found[:most]), (-0.5,) * most, finish)

    return policy


@dataclass
class Timed:
    """Serves all calls at once; a call lasts as many ticks as it has sampled tokens, and what the client wrote since
    the call that it goes on from. `shuffled`: calls last as long as chance says, to try another order."""

    policy: Policy = babble
    max_context: int = 4000
    shuffled: int | None = None
    clock: int = 0
    sent: list[tuple[list[int], Sampling, Completion]] = field(default_factory=list)
    written: int = 0
    """Sampled tokens, and those between calls that nobody sampled: L_total, but for what follows the last call."""
    _waiting: list[tuple[int, float, asyncio.Future[None]]] = field(default_factory=list)
    _known: set[tuple[int, ...]] = field(default_factory=set)

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        ids = prompt.ids if isinstance(prompt, View) else list(prompt)
        check_call(ids, sampling, self.max_context)
        done = self.policy(ids, sampling)
        self.sent.append((ids, sampling, done))
        size = len(done.ids) + self._forced(ids)
        self.written += size
        rng = random.Random(repr((self.shuffled, len(self.sent))))
        lasts = size if self.shuffled is None else rng.randint(1, 9)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self.clock + lasts, rng.random(), ended))
        await ended
        self._known.add((*ids, *done.ids))
        return done

    def _forced(self, ids: list[int]) -> int:
        """What was added to an earlier call's end before this one; a context that goes on from none is a prompt."""
        if ids == [*question().prompt, DIALECT.end_think]:
            return 1  # no room to reason at all
        before = [len(known) for known in self._known if tuple(ids[: len(known)]) == known]
        return len(ids) - max(before) if before else 0

    async def _drive(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.ensure_future(coroutine)
        while not task.done():
            for _ in range(60):  # everyone who can go on does so
                await asyncio.sleep(0)
            if self._waiting:
                self._waiting.sort(key=lambda each: each[:2])
                self.clock = self._waiting[0][0]
                self._end(1 if self.shuffled is not None else sum(at == self.clock for at, *_ in self._waiting))
        return task.result()

    def _end(self, count: int) -> None:
        for *_, ended in self._waiting[:count]:
            if not ended.done():  # nobody waits for it any more
                ended.set_result(None)
        del self._waiting[:count]

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run(self._drive(coroutine))


def setting(engine: Timed, budget: Budget = BUDGET) -> Setting:
    return Setting(engine, DIALECT, TOKENS, budget)


def after(text: str) -> str | None:
    """A rule of where the answer is: what follows the reasoning."""
    return text.rpartition("</think>")[2].strip() or None


def question(text: str = "a3b7=", **more: Any) -> Question:
    return Question("q", text, TOKENS.prompt(text), **{"answer": after} | more)


def solve(
    name: str,
    options: dict[str, Any],
    policy: Policy = babble,
    *,
    seed: int = 3,
    asked: Question | None = None,
    budget: Budget = BUDGET,
    **engine: Any,
) -> tuple[Solved, Timed]:
    timed = Timed(policy, **engine)
    return timed.run(make_strategy(name, options).solve(setting(timed, budget), asked or question(), seed)), timed
