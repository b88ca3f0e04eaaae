"""Measures what hardware_latency asks for: milliseconds of a decode step by batch size, and of a context token read.

    python scripts/measure_decode_cost.py [--model FOLDER] [--batches 1 2 4 8 16] [--repeats 5] [--context 512]

Prints settings to paste below `hardware_latency:`, and JSON on its last line. Without --model: a fresh model of the
quickstart's size. Seconds are those inside vLLM's step. A step of b sequences: long runs minus short ones, per further
step, so that reading the prompt drops out. A read token: long contexts minus short ones, per further token; prompts
never repeat, so nothing comes from the prefix cache. Figures are medians over the repeats; as a step of more sequences
cannot cost less, the curve is made to rise by its running maximum.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

from transformers import AutoConfig

from apr_train.config import ModelConfig
from apr_train.model import prepare_model_folder
from rollout.dialects.threadweaver import ThreadWeaver
from rollout.engine import Sampling
from rollout.engines.vllm_inprocess import EngineStats, VllmEngine

SHORT, LONG = 8, 40
"""Tokens of the two runs whose difference is the cost of a step."""
Timed = Callable[[int, int, int], tuple[float, int]]
"""(calls, prompt tokens, sampled tokens of each) -> (seconds inside the engine's steps, steps)."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--context", type=int, default=512, help="longest context that is read")
    parser.add_argument("--dtype", default="float32", help="float32 | bfloat16")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or Path(scratch) / "model"
        if arguments.model is None:
            prepare_model_folder(ModelConfig(max_context=arguments.context + LONG), ThreadWeaver.tags(), folder, seed=0)
        engine = VllmEngine(folder, max_context=arguments.context + LONG, dtype=arguments.dtype)
        try:
            timed = engine_timer(engine, AutoConfig.from_pretrained(folder).vocab_size)
            curve = decode_curve(timed, sorted({1, *arguments.batches}), arguments.repeats)
            prefill = prefill_cost(timed, arguments.context, arguments.repeats)
        finally:
            engine.close()
    written = ", ".join(f"[{batch}, {ms:.4g}]" for batch, ms in curve)
    print(f"decode_ms: [{written}]\nprefill_ms: {prefill:.4g}")
    print(json.dumps({"decode_ms": curve, "prefill_ms": prefill, "model": str(arguments.model or "quickstart size")}))
    return 0


def engine_timer(engine: VllmEngine, vocabulary: int) -> Timed:
    """Times calls on a real engine; every call has a prompt of its own."""
    draw = random.Random(0)

    def timed(calls: int, prompt: int, sampled: int) -> tuple[float, int]:
        engine.stats = EngineStats()
        prompts = [[draw.randrange(vocabulary) for _ in range(prompt)] for _ in range(calls)]
        engine.run([engine.complete(ids, Sampling(max_tokens=sampled, stop_ids=())) for ids in prompts])
        return engine.stats.step_seconds, engine.stats.steps

    return timed


def decode_curve(timed: Timed, batches: Sequence[int], repeats: int) -> list[tuple[int, float]]:
    """(batch, milliseconds of one step), never falling."""
    timed(batches[-1], 8, SHORT)  # the first run also warms caches up
    found: list[float] = []
    for batch in batches:
        costs: list[float] = []
        for _ in range(repeats):
            (short, few), (long, many) = timed(batch, 8, SHORT), timed(batch, 8, LONG)
            costs.append(1000 * (long - short) / (many - few))
        found.append(statistics.median(costs))
    return list(zip(batches, accumulate(found, max), strict=True))


def prefill_cost(timed: Timed, context: int, repeats: int) -> float:
    """Milliseconds of one context token, from contexts of a quarter of the length and of all of it; not below 0."""
    costs: list[float] = []
    for _ in range(repeats):
        short, long = timed(1, context // 4, 1)[0], timed(1, context, 1)[0]
        costs.append(1000 * (long - short) / (context - context // 4))
    return max(0.0, statistics.median(costs))


if __name__ == "__main__":
    sys.exit(main())
