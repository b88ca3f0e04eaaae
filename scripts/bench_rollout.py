"""Times fork/join rollouts on a real vLLM engine: our orchestrator, the same with a barrier, and flat generation.

    python scripts/bench_rollout.py [--trajectories 64] [--scale 0.04166] [--repeats 4] [--seed 0] [--model FOLDER]

The last line is JSON. All lengths are drawn beforehand and no token stops a call, so every way samples as many tokens:

ours     `run_trajectory`, all trajectories in flight: a call that ends lets its successor start at once
barrier  the same trajectories; a call's result is held back until all calls of its round have ended
flat     one request per trajectory that samples as many tokens as the trajectory does

`engine_busy_fraction` is wall time inside vLLM's step over all wall time of `ours`; `vs_barrier` and `vs_flat` are the
others' seconds over ours. Alone in flight: `token_speedup` = L_total / L_critical, `wall_speedup` = seconds of one flat
sequence of L_total tokens over ours, `wall_over_token` their ratio, 1 where decoding several threads costs no more than
decoding one. A tiny model on a CPU is near 1, because a step is mostly vLLM's own overhead; a larger one falls below,
because there the cost of a step grows with the number of threads.

On a CPU, seconds are CPU seconds of this one-threaded process. The ways take turns and each is timed by its fastest
repeat, because other work on the machine only ever adds time; `steps` are exact. The trajectories have the shape of
ThreadWeaver's Table 8 (arXiv 2512.07843), lengths times `scale`; every run has prompts of its own, so that none reads
another's cache. Without --model the model is a fresh one of the quickstart's size.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apr_train.config import ModelConfig
from apr_train.model import load_tokenizer, prepare_model_folder
from rollout.critical_path import measure
from rollout.dialects.base import Ids, Name, Reading, Turn
from rollout.dialects.threadweaver import ThreadWeaver
from rollout.engine import Completion, Engine, Prompt, Sampling
from rollout.engines.vllm_inprocess import EngineStats, VllmEngine
from rollout.orchestrator import Budget, run_trajectory
from rollout.tokens import Tokens, register_tags
from rollout.trajectory import Trajectory

TOTAL_TOKENS, PARALLEL_RATIO, PROMPT_TOKENS = 11_176, 0.68, 48
"""Response tokens of a trajectory and their share inside threads (Table 8, self-train); the prompt length is ours."""
BLOCKS, THREADS = (4, 5, 6), (2, 3)
SINGLES = 4
"""Trajectories that are also timed alone in flight."""


@dataclass(frozen=True)
class Shape:
    """One trajectory to be: the sampled lengths of the root's turns and of each block's threads."""

    turns: tuple[int, ...]
    threads: tuple[tuple[int, ...], ...]

    @property
    def sampled(self) -> int:
        return sum(self.turns) + sum(map(sum, self.threads))


def draw_shape(draw: random.Random, scale: float) -> Shape:
    """Lengths within a factor 1/2 to 3/2 of their mean, which is `scale` times the paper's."""
    blocks, total = draw.choice(BLOCKS), TOTAL_TOKENS * scale
    widths = [draw.choice(THREADS) for _ in range(blocks)]

    def lengths(count: int, tokens: float) -> tuple[int, ...]:
        return tuple(max(1, round(tokens / count * draw.uniform(0.5, 1.5))) for _ in range(count))

    turns = lengths(blocks + 1, total * (1 - PARALLEL_RATIO))
    threads = tuple(lengths(width, total * PARALLEL_RATIO / blocks) for width in widths)
    return Shape(turns, threads)


@dataclass(frozen=True)
class Run:
    """What one run took: seconds, the share of its wall time inside vLLM's step, and the engine's counters."""

    seconds: float
    busy: float
    stats: EngineStats


class Scripted(ThreadWeaver):
    """ThreadWeaver's forced tokens around a random policy: forks and joins come where the shape says."""

    def __init__(self, tokens: Tokens, shape: Shape) -> None:
        super().__init__(tokens)
        self._turns = iter([*(len(block) for block in shape.threads), None])

    def stops(self, thread: Name) -> Ids:
        return ()

    def read(self, turn: Turn) -> Reading:
        if turn.thread:
            return Reading("join")
        threads = next(self._turns)
        return Reading("final") if threads is None else Reading("fork", self._fork((), threads))

    def force_answer(self, response: Ids) -> Ids:
        return (self.end_think,)  # a random policy writes </think> anywhere; it must not end the reasoning here


class FixedLengths:
    """Asks the engine for exactly as many tokens as the shape says for the thread's turn."""

    def __init__(self, engine: Engine, shape: Shape) -> None:
        self.engine, self.shape, self.max_context = engine, shape, engine.max_context
        self._turns = iter(shape.turns)

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        length = self.shape.threads[thread[0]][thread[1] - 1] if thread else next(self._turns)
        assert length <= sampling.max_tokens, "the budget must not cut what is to be timed"
        return await self.engine.complete(prompt, Sampling(length, sampling.stop_ids), thread)


class Barrier:
    """Collects the calls of a round, samples them, and gives no result before all have ended."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine, self.max_context = engine, engine.max_context
        self._round: list[tuple[Coroutine[Any, Any, Completion], asyncio.Future[Completion]]] = []
        self._task: asyncio.Task[None] | None = None

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        future = asyncio.get_running_loop().create_future()
        self._round.append((self.engine.complete(prompt, sampling, thread), future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._rounds())
        return await future

    async def _rounds(self) -> None:
        while self._round:
            for _ in range(20):  # until every trajectory has asked for what it can
                await asyncio.sleep(0)
            calls, self._round = self._round, []
            done = await asyncio.gather(*(call for call, _ in calls))
            for completion, (_, future) in zip(done, calls, strict=True):
                future.set_result(completion)
            await asyncio.sleep(0)


class Bench:
    """An engine, and the ways to make it sample some shapes. Each returns what one run of it took."""

    def __init__(self, engine: VllmEngine, tokens: Tokens, seed: int) -> None:
        self.engine, self.tokens = engine, tokens
        self.clock: Callable[[], float] = time.perf_counter if torch.cuda.is_available() else time.process_time
        self.budget = Budget(response=engine.max_context, answer=1, threads=max(THREADS), blocks=max(BLOCKS))
        self._draw = random.Random(seed)

    def prompt(self) -> tuple[int, ...]:
        return tuple(self._draw.randrange(len(self.tokens.tokenizer)) for _ in range(PROMPT_TOKENS))

    def run(self, coroutines: list[Coroutine[Any, Any, Any]]) -> tuple[Run, list[Any]]:
        self.engine.stats = stats = EngineStats()
        wall, start = time.perf_counter(), self.clock()
        results = self.engine.run(coroutines)
        seconds = self.clock() - start
        return Run(seconds, stats.step_seconds / (time.perf_counter() - wall), stats), results

    def forked(self, engine: Engine, shapes: list[Shape]) -> tuple[Run, list[Trajectory]]:
        return self.run(
            [
                run_trajectory(FixedLengths(engine, s), Scripted(self.tokens, s), str(i), self.prompt(), self.budget)
                for i, s in enumerate(shapes)
            ]
        )

    def flat(self, lengths: list[int]) -> Run:
        return self.run([self.engine.complete(list(self.prompt()), Sampling(length, ())) for length in lengths])[0]

    def together(self, shapes: list[Shape], repeats: int) -> dict[str, Any]:
        """All shapes in flight, three ways."""
        ways: dict[str, Callable[[], Run]] = {
            "ours": lambda: self.forked(self.engine, shapes)[0],
            "barrier": lambda: self.forked(Barrier(self.engine), shapes)[0],
            "flat": lambda: self.flat([shape.sampled for shape in shapes]),
        }
        runs = [{way: run() for way, run in ways.items()} for _ in range(repeats)]
        assert all(run.stats.sampled_tokens == sum(s.sampled for s in shapes) for each in runs for run in each.values())
        ours = runs[0]["ours"].stats
        seconds = {way: min(each[way].seconds for each in runs) for way in ways}
        return {
            "engine_busy_fraction": statistics.median(each["ours"].busy for each in runs),
            "tokens_per_s": ours.sampled_tokens / seconds["ours"],
            "vs_barrier": seconds["barrier"] / seconds["ours"],
            "vs_flat": seconds["flat"] / seconds["ours"],
            "prefix_cache_hit_rate": ours.cached_tokens / ours.prompt_tokens,
            "sampled_tokens": ours.sampled_tokens,
            "steps": {way: run.stats.steps for way, run in runs[0].items()},
        }

    def alone(self, shapes: list[Shape], repeats: int) -> dict[str, float]:
        """One shape in flight at a time, and a flat sequence as long as its response."""
        ours = flat = total = critical = 0.0
        for shape in shapes:
            runs = [self.forked(self.engine, [shape]) for _ in range(repeats)]
            lengths = measure(runs[0][1][0])
            total, critical = total + lengths.l_total, critical + lengths.l_critical
            ours += min(run.seconds for run, _ in runs)
            flat += min(self.flat([lengths.l_total]).seconds for _ in range(repeats))
        token, wall = total / critical, flat / ours
        return {"token_speedup": token, "wall_speedup": wall, "wall_over_token": wall / token}


def bench(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Builds the model and the engine, warms up, measures."""
    config = ModelConfig(path=args.model)
    tokenizer = load_tokenizer(config)
    register_tags(tokenizer, ThreadWeaver.tags())
    prepare_model_folder(config, ThreadWeaver.tags(), folder, args.seed)
    draw = random.Random(args.seed)
    shapes = [draw_shape(draw, args.scale) for _ in range(args.trajectories)]
    engine = VllmEngine(folder, max_context=config.max_context, max_in_flight=args.trajectories * max(THREADS))
    measured = Bench(engine, Tokens(tokenizer), args.seed)
    measured.together(shapes[:SINGLES], 1)
    figures = {**measured.together(shapes, args.repeats), **measured.alone(shapes[:SINGLES], args.repeats)}
    engine.close()
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    return {**rounded, **vars(args), "cuda": torch.cuda.is_available()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Times fork/join rollouts on a real vLLM engine.")
    parser.add_argument("--trajectories", type=int, default=64)
    parser.add_argument("--scale", type=float, default=1 / 24)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="a model folder; a fresh one of the quickstart's size when left out")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(bench(parser.parse_args(), Path(folder))))


if __name__ == "__main__":
    main()
