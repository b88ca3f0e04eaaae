"""One thread of a trajectory: samples, forks, meets what it forked, and keeps the accounts of its share."""

import asyncio
from dataclasses import dataclass, replace

from rollout.dialects.base import Child, DialectError, Fork, Reading, Result, Turn
from rollout.engine import Completion, EngineError, Race, Sampling, Together
from rollout.engines.calls import together
from rollout.recording import Recording
from rollout.seeds import mix
from rollout.trajectory import Call, Event, Outcome, TrajectoryError, look


@dataclass(slots=True)
class _Open:
    """A block whose parent went on at once."""

    task: asyncio.Task[list["Thread"]]
    fork: Fork
    held: int
    """Tokens put aside for the threads and for the message about them."""
    message: int
    """How many of those may come into the parent's context."""


class Thread:
    """One thread, the root included: what it sees, what it has written, and what it and all below it may still add."""

    def __init__(self, run: Recording, name: tuple[int, ...], context: list[int], *, left: int, deadline: int) -> None:
        self.all, self.name, self.context = run, name, context
        self.last = context[-1]  # what this thread sampled last
        self.left = left  # response tokens, those of nested threads included
        self.deadline = deadline  # no token may end later than this on the critical path
        self.own: list[int] = []
        self.sampled: list[int] = []
        self.spent = self.turns = self.blocks = 0
        self.begun = self.closed = False  # the client forked before the first turn; it closed this thread
        self.open: dict[int, _Open] = {}
        self.event: Event = "truncated"

    # -- the state machine -----------------------------------------------------------------------------------------

    async def run(self) -> Event:
        """Samples until the thread ends, forking and joining on the way."""
        try:
            self.event = await self._turns()
            await self._settle()
        finally:
            tasks = [opened.task for opened in self.open.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self.event

    async def _turns(self) -> Event:
        while True:
            reading = await self.sample(self.room() - self.reserve())
            if reading.event == "fork" and reading.fork is not None:
                self.blocks += 1
                if not await self.block(reading.fork):
                    return "truncated"
            elif reading.event == "wait" and reading.label is not None:
                await self._meet(reading.label)
            else:
                if reading.event == "malformed":
                    self.all.note(f"fork/{reading.reason}")
                return reading.event

    def _granted(self, reading: Reading) -> Reading:
        """What the dialect read, unless the client does not run it. The model has no say in the limits."""
        budget, fork, label = self.all.budget, reading.fork, reading.label
        reason = ""
        if reading.event == "wait" and label not in self.open:
            reason = "a join of what was never forked"
        elif fork is not None and (len(fork.children) > budget.threads or self.blocks >= budget.blocks):
            reason = "over budget"
        elif fork is not None and len(self.name) // 2 >= budget.depth:
            reason = "too deep"
        elif fork is not None and fork.label in self.open:
            reason = "forked twice"
        return Reading("malformed", reason=reason) if reason else reading

    async def sample(self, most: int) -> Reading:
        """One call: samples after what the thread sees, records it, and says what comes of it."""
        done = await self.ask(most)
        return Reading("truncated") if done is None else self.record(done)

    async def ask(self, most: int, race: Race | None = None) -> Completion | None:
        """One completion, not yet recorded; None when not one token is left."""
        sampling = self.sampling(most, race)
        if sampling is None:
            return None
        number = (self.name or (0,))[-1] if self.all.strategy.thread_vectors else None
        view = look(self.all.segments, self.context, self.all.view_rule, number)
        return await self.all.engine.complete(view, sampling, self.name)

    def sampling(self, most: int, race: Race | None = None) -> Sampling | None:
        """How the next call samples; None when not one token is left."""
        run = self.all
        if self.name and run.budget.thread is not None:
            most = min(most, run.budget.thread - len(self.sampled))
        seed = None if run.seed is None else mix(run.seed, *self.name, self.turns)
        stops = run.dialect.stops(self.name)
        banned = run.strategy.banned_ids
        return Sampling(most, stops, run.temperature, seed, banned, race) if most >= 1 else None

    def read(self, done: Completion) -> Reading:
        """How the dialect understands a completion of this thread."""
        prompt = self.all.segments[0].ids
        return self.all.dialect.read(Turn(done.ids, done.finish, self.name, tuple(self.own), prompt))

    def record(self, done: Completion, event: Event | None = None) -> Reading:
        """Adds a call, as two where later contexts keep only its first part; `event`: the dialect is not asked."""
        reading = Reading(event) if event else self._granted(self.read(done))
        kept = len(done.ids) - (reading.fork.drops if reading.fork else 0)
        if kept == len(done.ids):
            self.context.append(self._sampled(done.ids, done.logprobs, reading.event))
        else:
            if kept:
                self.context.append(self._sampled(done.ids[:kept], done.logprobs[:kept], "kept"))
            self._sampled(done.ids[kept:], done.logprobs[kept:], reading.event)
        self.turns += 1
        self.sampled += done.ids
        self.own += done.ids[:kept]
        self._pay(len(done.ids))
        return reading

    def _sampled(self, ids: tuple[int, ...], logprobs: tuple[float, ...], event: Event) -> int:
        run, seen = self.all, tuple(self.context)
        self.last = run.add("sampled", ids, (seen[-1],), self.name, logprobs)
        run.calls.append(Call(seen, self.last, event))
        return self.last

    # -- blocks ----------------------------------------------------------------------------------------------------

    async def block(self, fork: Fork) -> bool:
        """Forks, waits for all threads and adds the join; or forks and goes on. False when there was no room."""
        run = self.all
        if fork.drops and run.dialect.join_rule == "stitched":
            raise DialectError("a fork that drops what it wrote cannot be stitched: its threads descend from it")
        parent = self.context[-1] if not fork.drops else self.last
        shares = self._shares(fork, parent)
        if shares is None:
            run.note("fork/no room")
            if run.calls:  # nothing was awaited since: the last call is the one that asked
                run.calls[-1] = replace(run.calls[-1], event="truncated")
            return False
        if fork.shared:
            parent = self.force(fork.shared, parent)
            self.context.append(parent)
        block = max(0, self.turns - 1)
        if self.begun and block == 0:
            raise DialectError("a dialect whose client starts with a block cannot fork in its first turn: names clash")
        self.begun = not self.turns
        if run.strategy.name == "in_order":
            self._join(fork, await self._one_by_one(fork, block, parent, shares), parent)
            return True
        children = [
            self._child(child, (*self.name, block, k), parent, *shares) for k, child in enumerate(fork.children, 1)
        ]
        if fork.label is None:
            await _all_of(fork, children)
            self._join(fork, children, parent)
            return True
        message = run.dialect.join_tokens(fork, self.name) + shares[1]  # no thread samples more than its critical share
        held = message + shares[0] + sum(len(child.close) for child in fork.children)
        self._pay(held)
        self.open[fork.label] = _Open(asyncio.create_task(_all_of(fork, children)), fork, held, message)
        return True

    def _shares(self, fork: Fork, parent: int) -> tuple[int, int] | None:
        """(tokens, critical tokens) that each thread may add after its header; None when that is not even one.

        What joins and headers take is set aside first, and so are copies of what the threads sample, if their parent
        will read copies. With n threads, copies and no critical limit: (left - forced - reserve) / 2n each.
        """
        run, n = self.all, len(fork.children)
        passes_copies = run.dialect.join_rule == "message"
        join, reserve = run.dialect.join_tokens(fork, self.name), self.reserve()
        frames = [len(child.header) + len(child.close) for child in fork.children]
        forced, shares = len(fork.shared) + sum(frames) + join, max(n, fork.slots)
        tokens = (self.left - forced - reserve) // (shares * (1 + passes_copies))
        length = self._space() - self._promised()
        if passes_copies:
            tokens = min(tokens, (length - join - reserve) // shares)
        else:
            tokens = min(tokens, (length - forced - reserve) // n)
        for child in fork.children:
            if child.fresh:
                tokens = min(tokens, run.engine.max_context - len(child.header) - len(child.close))
        if run.strategy.name == "group_think" and run.strategy.stride is not None:  # positions of the last thread
            tokens = min(tokens, length - len(fork.shared) - max(frames) - (n - 1) * run.strategy.stride)
        in_order = run.strategy.name == "in_order"
        frame = sum(frames) if in_order else max(frames)
        ahead = self.deadline - run.finish[parent] - len(fork.shared) - frame - join - reserve - self._promised()
        copies = shares * passes_copies
        critical = min(ahead // (n if in_order else 1 + copies), tokens)
        return (tokens, critical) if critical >= 1 else None

    async def _one_by_one(self, fork: Fork, block: int, parent: int, shares: tuple[int, int]) -> list["Thread"]:
        """Runs the threads one after the other, each after what all before it wrote: no two at once."""
        run, own = self.all, list(self.context)
        if run.dialect.join_rule != "transcript" or fork.ends != "all" or fork.label is not None:
            raise DialectError(
                "strategy=in_order writes blocks that are met at once, as one text: a dialect with a transcript join, "
                "without races"
            )
        children: list[Thread] = []
        for k, child in enumerate(fork.children, 1):
            thread = self._child(child, (*self.name, block, k), parent, *shares)
            children.append(thread)
            await thread.run()
            self._close(child, thread)
            parent = thread.context[-1]
            self.context = list(thread.context)
        self.context = own
        for thread in children[1:]:  # what the parent is given of each is its own, not what it saw of the others
            mine = len(thread.name)
            after = thread.context[len(own) :]
            thread.context = [*own, *(at for at in after if run.segments[at].thread[:mine] == thread.name)]
        return children

    def _close(self, child: Child, thread: "Thread") -> None:
        """Closes a thread that did not close itself."""
        if thread.event == "join" or thread.closed:
            return
        thread.closed = True
        note = {"final": "thread/eos", "cancelled": "thread/cut"}.get(thread.event, "thread/forced close")
        self.all.note(note)
        if child.close:
            thread.context.append(self.force(child.close, thread.context[-1], thread.name))

    def _child(self, child: Child, name: tuple[int, ...], parent: int, tokens: int, critical: int) -> "Thread":
        header = self.force(child.header, parent, name) if child.header else parent
        seen = [*([] if child.fresh else self.context), *([header] if child.header else [])]
        finish = self.all.finish[header]
        thread = Thread(self.all, name, seen, left=tokens, deadline=finish + critical)
        thread.own += child.header
        return thread

    def _join(self, fork: Fork, children: list["Thread"], parent: int) -> None:
        """Closes the threads that did not close themselves, and adds what their parent reads of them."""
        run = self.all
        results = [Result(tuple(thread.sampled), thread.event == "join") for thread in children]
        shown = children
        if fork.ends == "winner" and any(result.closed for result in results):
            shown = [thread for thread in children if thread.event == "join"][:1]
        for child, thread in zip(fork.children, children, strict=True):
            self._pay(thread.spent)
            if thread.event != "cancelled" or thread in shown:
                self._close(child, thread)
        ends = tuple(thread.context[-1] for thread in shown)
        if run.dialect.join_rule != "message":
            begin = len(self.context)
            for thread in shown:
                self.context += thread.context[begin:]
        ids = run.dialect.join(fork, results, self.name)
        self.own += ids
        self.context.append(self.force(ids, (parent, *ends) if run.dialect.join_rule == "message" else ends))

    async def _meet(self, label: int) -> None:
        """Waits for threads that were forked earlier, and takes back what they left of their share."""
        opened = self.open[label]
        children = await opened.task
        del self.open[label]
        self._pay(-opened.held)
        self._join(opened.fork, children, self.context[-1])

    async def _settle(self) -> None:
        """No thread outlives its parent: what was never joined still runs to its end, and counts."""
        for opened in self.open.values():
            children = await opened.task
            self.all.note("thread/never joined")
            self._pay(sum(thread.spent for thread in children) - opened.held)
        self.open.clear()

    async def force_answer(self) -> Outcome:
        """Closes the reasoning of a root that is out of budget and lets it answer with what was kept back."""
        if self.all.dialect.closing is None:
            return "truncated"
        forced = self.all.dialect.force_answer(tuple(self.own))
        if forced:
            self.context.append(self.force(forced, self.context[-1]))
        done = await self.ask(min(self.all.budget.answer, self.room()))
        if done is None:
            return "truncated"
        answered = self.read(done).event == "final"
        self.record(done, "final" if answered else "truncated")  # nothing forks any more
        return "forced_answer" if answered else "truncated"

    # -- accounts --------------------------------------------------------------------------------------------------

    def force(self, ids: tuple[int, ...], parents: int | tuple[int, ...], thread: tuple[int, ...] | None = None) -> int:
        """Adds what the client writes, at this thread's expense; its own unless said otherwise."""
        self._pay(len(ids))
        above = (parents,) if isinstance(parents, int) else parents
        return self.all.add("forced", ids, above, self.name if thread is None else thread)

    def _pay(self, tokens: int) -> None:
        self.left -= tokens
        self.spent += tokens

    def room(self) -> int:
        """Tokens that may still follow one another here: of the budget, of the critical path, of the context."""
        run = self.all
        promised = self._promised()
        return min(self.left, self.deadline - run.finish[self.context[-1]] - promised, self._space() - promised)

    def _promised(self) -> int:
        """Tokens that may still come into this context from threads that were not met yet."""
        return sum(opened.message for opened in self.open.values())

    def _space(self) -> int:
        """Tokens that the engine's context still holds after what this thread sees."""
        return self.all.engine.max_context - sum(len(self.all.segments[index].ids) for index in self.context)

    def reserve(self) -> int:
        """What a root keeps back for its answer; a thread's close is on its parent's account."""
        if self.name:
            return 0
        closing = self.all.dialect.closing
        return 0 if closing is None else self.all.budget.answer + closing


async def _all_of(fork: Fork, children: list[Thread]) -> list[Thread]:
    """Runs the threads of a block to its end, whichever that is."""
    if children[0].all.strategy.name != "fork_join":
        return await _in_lockstep(fork, children)
    if fork.ends == "all":
        await together(thread.run() for thread in children)
        return children
    race = Race()
    done = await together(_attempt(thread, race) for thread in children)
    for thread, completion in zip(children, done, strict=True):
        if completion is None:
            thread.event = "truncated"
            continue
        best = len(completion.ids) if race.best is None else race.best
        first = len(completion.ids) == best and thread.read(completion).event == "join"
        if first or len(completion.ids) < best or race.best is None:
            thread.event = _alone(thread.record(completion))
        else:
            cut = Completion(completion.ids[:best], completion.logprobs[:best], "length")
            thread.event = thread.record(cut, "cancelled").event
    return children


async def _attempt(thread: Thread, race: Race) -> Completion | None:
    done = await thread.ask(thread.room(), race)
    if done is not None and thread.read(done).event == "join":
        race.won(len(done.ids))
    return done


async def _in_lockstep(fork: Fork, children: list[Thread]) -> list[Thread]:
    """All threads at once, step by step, each seeing what the others wrote before."""
    run = children[0].all
    what = "a block that ends with its first thread" if fork.ends != "all" else ""
    if run.stride and run.strategy.stride is None and run.strategy.name == "group_think":
        what = "a second block without strategy.stride, which all blocks share"
    if what:
        raise DialectError(f"strategy={run.strategy.name} cannot sample {what}: use strategy=fork_join")
    if not isinstance(run.engine, Together):
        raise EngineError(
            f"strategy={run.strategy.name} needs an engine whose threads see each other: use rollout=torch"
        )
    headers = [run.segments[thread.context[-1]].ids for thread in children]
    asked = [thread.sampling(thread.room()) for thread in children]
    sampling = [each for each in asked if each is not None]
    if len(sampling) < len(children):
        raise TrajectoryError("a thread of a lockstep block has no room")  # _shares gives every thread a token
    longest = max(len(header) + each.max_tokens for header, each in zip(headers, sampling, strict=True))
    run.stride = longest if run.strategy.stride is None else run.strategy.stride
    before = look(run.segments, children[0].context[:-1], "causal")
    mode = "group_think" if run.strategy.name == "group_think" else "hogwild"
    names = [thread.name for thread in children]
    done = await run.engine.complete_together(before, headers, sampling, stride=run.stride, mode=mode, threads=names)
    for thread, completion in zip(children, done, strict=True):
        thread.event = _alone(thread.record(completion))
    return children


def _alone(reading: Reading) -> Event:
    """The event of a thread of one call. Raises DialectError where it forked: nobody would run its threads."""
    if reading.event in ("fork", "wait"):
        raise DialectError("threads that race, or run in lockstep, cannot fork")
    return reading.event
