"""Fuzzes every dialect: random token streams through its state machine, its parser and its strict check.

    python scripts/fuzz_dialects.py --streams 1000000              # about ten minutes a dialect on one core
    python scripts/fuzz_dialects.py --streams 20000 --dialect npr

A stream is what one call samples: random ids, half of them tags, or a piece of a well-formed turn with ids changed,
dropped or added. After each trajectory: no exception, every outcome and event named, no budget exceeded, every context
within the engine's, the calls replayable, the check a reason or None. The last line is JSON.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from apr_train.model import character_tokenizer
from apr_train.specimens import SETTINGS, scripts_of
from rollout.critical_path import measure
from rollout.dialects import DIALECTS, Dialect, dialect_class, make_dialect
from rollout.dialects.base import NO_SETTINGS, Ids, Script
from rollout.engine import Completion, Prompt, Sampling
from rollout.orchestrator import Budget, run_trajectory
from rollout.tokens import Tokens, register_tags
from rollout.trajectory import Event, Outcome, Trajectory
from rollout.view import View

MAX_CONTEXT = 160
SCALE = {"apr": 6}
"""How many times longer texts are in a dialect of characters and lines."""
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "threadweaver": ({}, {"conclusion": True}),
    "parathinker": ({"paths": 3}, {"paths": 3, "first_finish": True}),
    "asyncthink": ({"workers": 2}, {"workers": 4}),
}
"""Options that change the machine."""
PROMPTS = {"apr": ">0\n:12:3 4 5|\n"}


class FuzzEngine:
    """Samples garbage that knows the tags; counts its streams."""

    def __init__(self, rng: random.Random, tags: Ids, words: Ids, scripts: list[Script], scale: int) -> None:
        self.rng, self.tags, self.words = rng, tags, words
        self.turns: dict[tuple[int, ...], list[Ids]] = {}  # by depth, thread and number
        for script in scripts:
            for thread, turns in script.items():
                for number, turn in enumerate(turns):
                    self.turns.setdefault((len(thread), *thread[-1:], number), []).append(turn)
        self.asked: dict[tuple[int, ...], int] = {}
        self.max_context, self.streams = MAX_CONTEXT * scale, 0

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        self.streams += 1
        for _ in range(self.rng.choice((0, 0, 0, 1, 3))):
            await asyncio.sleep(0)  # siblings are served in any order
        view = prompt if isinstance(prompt, View) else View.causal([tuple(prompt)])
        assert sum(map(len, view.pieces)) + sampling.max_tokens <= self.max_context, "a call does not fit the engine"
        rng = self.rng
        number = self.asked[thread] = self.asked.get(thread, -1) + 1
        known = self.turns.get((len(thread), *thread[-1:], number)) or self.turns[(0, 0)]
        ids = self._changed(rng.choice(known)) if rng.random() < 0.8 else self._garbage(rng.randint(1, 40))
        stop = next((i + 1 for i, token in enumerate(ids) if token in sampling.stop_ids), None)
        if stop is None or stop > sampling.max_tokens:
            ids = (*ids, *self._garbage(sampling.max_tokens))[: sampling.max_tokens]
            stop = next((i + 1 for i, token in enumerate(ids) if token in sampling.stop_ids), None)
        ids = ids[:stop]
        return Completion(ids, (0.0,) * len(ids), "length" if stop is None else "stop")

    def _garbage(self, count: int) -> Ids:
        rng = self.rng
        return tuple(rng.choice(self.tags if rng.random() < 0.5 else self.words) for _ in range(count))

    def _changed(self, turn: Ids) -> Ids:
        """A turn with up to two of its ids changed, dropped or doubled."""
        ids = list(turn)
        for _ in range(self.rng.choice((0, 0, 0, 0, 1, 2))):
            at = self.rng.randrange(len(ids)) if ids else 0
            ids[at : at + 1] = self._garbage(self.rng.randint(0, 2))
        return tuple(ids) or self._garbage(1)


@dataclass
class Tally:
    """What came of one dialect's streams."""

    streams: int = 0
    trajectories: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict[str, int])
    events: dict[str, int] = field(default_factory=dict[str, int])
    strict: int = 0
    deepest: int = 0


def fuzz(name: str, join: str, streams: int, seed: int, options: Mapping[str, Any] = NO_SETTINGS) -> Tally:
    """Runs trajectories until so many streams were sampled; raises at the first flaw."""
    rng = random.Random(f"{seed}/{name}/{join}")
    tokenizer = character_tokenizer()
    options, scale = {**SETTINGS.get(name, {}), **options}, SCALE.get(name, 1)
    tags = dialect_class(name).tags(options)
    register_tags(tokenizer, tags)
    tokens = Tokens(tokenizer)
    dialect = make_dialect(name, tokens, join, options)
    scripts = scripts_of(name, dialect, rng, 200)
    engine = FuzzEngine(rng, (*map(tokens.tag, tags), tokens.eos), tokens.text("ab1: 2,\n"), scripts, scale)
    prompt = tokens.prompt(PROMPTS.get(name, "a3="))
    tally, started = Tally(), time.perf_counter()

    async def batch() -> None:
        for _ in range(200):
            budget = random_budget(rng, scale)
            engine.asked.clear()
            trajectory = await run_trajectory(engine, dialect, "p", prompt, budget)
            examine(trajectory, dialect, budget, engine.max_context, tally)

    while engine.streams < streams:
        asyncio.run(batch())
    tally.streams, tally.seconds = engine.streams, round(time.perf_counter() - started, 1)
    return tally


def random_budget(rng: random.Random, scale: int) -> Budget:
    return Budget(
        response=rng.randint(24, 140) * scale,
        answer=rng.randint(1, 8),
        threads=rng.choice((4, 16)),
        blocks=rng.choice((1, 2, 6)),
        critical=rng.choice((None, None, rng.randint(24, 90) * scale)),
        thread=rng.choice((None, None, rng.randint(1, 30) * scale)),
        depth=rng.randint(1, 3),
    )


def examine(trajectory: Trajectory, dialect: Dialect, budget: Budget, context: int, tally: Tally) -> None:
    """What must hold of every trajectory, whatever was sampled."""
    lengths = measure(trajectory)
    assert trajectory.outcome in get_args(Outcome)
    assert all(call.event in get_args(Event) for call in trajectory.calls)
    assert lengths.l_critical <= lengths.l_total <= budget.response, f"{lengths} over {budget}"
    assert budget.critical is None or lengths.l_critical <= budget.critical, f"{lengths} over {budget}"
    assert lengths.depth <= budget.depth
    assert len(trajectory.calls) <= 2 * budget.response
    sampled: dict[tuple[int, ...], int] = {}
    for call in trajectory.calls:
        segment = trajectory.segments[call.sampled]
        sampled[segment.thread] = sampled.get(segment.thread, 0) + len(segment.ids)
        assert len(trajectory.context_ids(call)) + len(segment.ids) <= context
        trajectory.view(call)
    if budget.thread is not None:
        assert all(count <= budget.thread for name, count in sampled.items() if name)
    flaw = dialect.check(trajectory)
    closed = {"thread/eos", "thread/forced close"} & trajectory.notes.keys()
    assert flaw or (trajectory.outcome == "answered" and not closed), "a breach that the strict check does not see"
    forks = sum(call.event == "fork" for call in trajectory.calls)
    assert lengths.blocks == forks + (dialect.begin() is not None and lengths.blocks > 0), "a fork that was not run"
    tally.trajectories += 1
    tally.strict += flaw is None
    tally.deepest = max(tally.deepest, lengths.depth)
    tally.outcomes[trajectory.outcome] = tally.outcomes.get(trajectory.outcome, 0) + 1
    for call in trajectory.calls:
        tally.events[call.event] = tally.events.get(call.event, 0) + 1


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=20_000, help="per dialect, shared by its joins and options")
    parser.add_argument("--dialect", choices=sorted(DIALECTS), help="one of them; all without it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    rows = []
    for name in [arguments.dialect] if arguments.dialect else DIALECTS:
        kinds = [(join, options) for join in dialect_class(name).joins for options in VARIANTS.get(name, ({},))]
        for join, options in kinds:
            tally = fuzz(name, join, -(-arguments.streams // len(kinds)), arguments.seed, options)
            rows.append({"dialect": name, "join": join, **options, "seed": arguments.seed, **vars(tally)})
            print(
                f"{name:<14}{join:<12}{tally.streams:>10,} streams {tally.seconds:>8} s  {tally.outcomes}", flush=True
            )
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
