"""Runs one trajectory: a dialect's state machine over an engine, within budgets, every end named."""

import asyncio
from dataclasses import dataclass
from hashlib import blake2b

from rollout.dialects.base import Dialect, Reading
from rollout.engine import Engine, EngineError, Sampling
from rollout.trajectory import Call, Origin, Outcome, Segment, Trajectory


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one trajectory, in response tokens (sampled and forced). None: no limit but the engine's context.

    `answer` tokens are kept back so that a root out of budget can still close its reasoning and answer. Siblings share
    what is left in equal parts, so a trajectory does not depend on which thread the engine serves first.

    >>> Budget(response=768, answer=32, threads=8, blocks=16)
    """

    response: int
    answer: int
    threads: int
    blocks: int
    critical: int | None = None
    thread: int | None = None


async def run_trajectory(
    engine: Engine,
    dialect: Dialect,
    problem_id: str,
    prompt_ids: tuple[int, ...],
    budget: Budget,
    *,
    temperature: float = 1.0,
    seed: int | None = None,
    policy_version: int = 0,
) -> Trajectory:
    """Samples one trajectory for a prompt. Raises EngineError when the engine cannot serve it.

    With a `seed`, each call draws from a stream of its own, named by (seed, thread, turn): what is sampled does not
    depend on which call the engine happens to serve first.
    """
    run = _Run(engine, dialect, budget, temperature, seed)
    outcome = await run.root(prompt_ids)
    notes = dict(sorted(run.notes.items()))
    return Trajectory(
        problem_id, dialect.name, tuple(run.segments), tuple(run.calls), outcome, policy_version, notes=notes
    )


def mix(*numbers: int) -> int:
    """A 64-bit seed from several numbers, the same on every machine; mix(1, 2) and mix(12) differ.

    >>> mix(0, 1) != mix(1, 0)
    True
    """
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "big")


class _Run:
    """The state of one trajectory while it is being sampled."""

    def __init__(self, engine: Engine, dialect: Dialect, budget: Budget, temperature: float, seed: int | None) -> None:
        self.engine, self.dialect, self.budget, self.temperature = engine, dialect, budget, temperature
        self.seed = seed
        self.segments: list[Segment] = []
        self.finish: list[int] = []  # critical tokens up to the end of each segment
        self.calls: list[Call] = []
        self.notes: dict[str, int] = {}
        self.used = 0

    async def root(self, prompt_ids: tuple[int, ...]) -> Outcome:
        context = [self._add("prompt", prompt_ids, ())]
        if self._critical_left(context) <= self._answer_reserve(context):
            raise EngineError(
                f"a prompt of {len(prompt_ids)} tokens leaves no room to reason and answer: raise model.max_context="
                f"{self.engine.max_context} or the budgets in rollout, or drop the problem"
            )
        blocks = 0
        while True:
            reading = await self._sample(context, (), self._critical_left(context) - self._answer_reserve(context))
            if reading.event == "final":
                return "answered"
            if reading.event == "malformed":
                self._note(f"fork/{reading.reason}")
                return "malformed"
            if reading.event == "truncated":
                return await self._force_answer(context)
            blocks += 1
            if reading.threads > self.budget.threads or blocks > self.budget.blocks:
                self._note("fork/over budget")
                return "malformed"
            if not self.dialect.force_answer(self._response(context)):
                self._note("fork/after the reasoning")
                return "malformed"
            if not await self._block(context, blocks - 1, reading.threads):
                return await self._force_answer(context)

    async def _block(self, context: list[int], block: int, threads: int) -> bool:
        """Forks, waits for all threads and appends their transcript to `context`; False when there was no room."""
        shared, headers = self.dialect.fork(threads)
        closes, join = [self.dialect.close_thread(k) for k in range(1, threads + 1)], self.dialect.join()
        forced = len(shared) + sum(map(len, (*headers, *closes))) + len(join)
        reserve = self._answer_reserve(context)
        each = (self._tokens_left(context) - forced - reserve) // threads
        longest_frame = max(len(header + close) for header, close in zip(headers, closes, strict=True))
        each = min(each, self._critical_left(context) - len(shared + join) - longest_frame - reserve)
        each = min(each, self.budget.thread or each)
        if each < 1:
            self._note("fork/no room")
            return False
        start = self._add("forced", shared, (context[-1],))
        names = [(block, k) for k in range(1, threads + 1)]
        views = [
            [*context, start, self._add("forced", header, (start,), name)]
            for name, header in zip(names, headers, strict=True)
        ]
        readings = await asyncio.gather(
            *(self._sample(view, name, each) for view, name in zip(views, names, strict=True))
        )
        base = len(context) + 1  # where a thread's own segments begin in its view
        context.append(start)
        for name, view, reading, close in zip(names, views, readings, closes, strict=True):
            if reading.event != "join":
                self._note("thread/eos" if reading.event == "final" else "thread/forced close")
                view.append(self._add("forced", close, (view[-1],), name))
            context.extend(view[base:])
        context.append(self._add("forced", join, tuple(view[-1] for view in views)))
        return True

    async def _force_answer(self, context: list[int]) -> Outcome:
        """Closes the reasoning of a root that is out of budget and lets it answer with what was kept back."""
        forced = self.dialect.force_answer(self._response(context))
        if forced:
            context.append(self._add("forced", forced, (context[-1],)))
        reading = await self._sample(context, (), min(self.budget.answer, self._critical_left(context)))
        return "forced_answer" if reading.event == "final" else "truncated"

    async def _sample(self, context: list[int], thread: tuple[int, ...], max_tokens: int) -> Reading:
        """One call: samples after `context`, appends the segment to it, and says how the dialect reads its end."""
        if max_tokens < 1:
            return Reading("truncated")
        ids = [token for index in context for token in self.segments[index].ids]
        stops = self.dialect.stops(in_thread=bool(thread))
        turn = sum(self.segments[call.sampled].thread == thread for call in self.calls)
        seed = None if self.seed is None else mix(self.seed, *thread, turn)
        sampling = Sampling(max_tokens, stops, self.temperature, seed)
        seen = tuple(context)
        completion = await self.engine.complete(ids, sampling, thread)
        reading = self.dialect.read(completion.ids, completion.finish, in_thread=bool(thread))
        context.append(self._add("sampled", completion.ids, (context[-1],), thread, completion.logprobs))
        self.calls.append(Call(seen, context[-1], reading.event))
        return reading

    def _add(
        self,
        origin: Origin,
        ids: tuple[int, ...],
        parents: tuple[int, ...],
        thread: tuple[int, ...] = (),
        logprobs: tuple[float, ...] | None = None,
    ) -> int:
        own = 0 if origin == "prompt" else len(ids)
        self.used += own
        self.finish.append(own + max((self.finish[parent] for parent in parents), default=0))
        self.segments.append(Segment(origin, ids, logprobs, parents, thread))
        return len(self.segments) - 1

    def _tokens_left(self, context: list[int]) -> int:
        """Tokens that may still be added, whichever ends first: the response's budget or the engine's context."""
        length = sum(len(self.segments[index].ids) for index in context)
        return min(self.budget.response - self.used, self.engine.max_context - length)

    def _critical_left(self, context: list[int]) -> int:
        """Tokens that may still follow one another after `context`."""
        left = self._tokens_left(context)
        return left if self.budget.critical is None else min(left, self.budget.critical - self.finish[context[-1]])

    def _answer_reserve(self, context: list[int]) -> int:
        return self.budget.answer + len(self.dialect.force_answer(self._response(context)))

    def _response(self, context: list[int]) -> list[int]:
        """What the root itself wrote so far: a tag in a thread's text is not the root's."""
        own = (self.segments[index] for index in context[1:])
        return [token for segment in own if not segment.thread for token in segment.ids]

    def _note(self, what: str) -> None:
        self.notes[what] = self.notes.get(what, 0) + 1
