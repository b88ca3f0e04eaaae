"""Times the torch engine against transformers' `generate`, and a fork/join workload under both joins.

    python scripts/bench_torch_engine.py [--requests 64] [--tokens 100] [--trajectories 16] [--repeats 3] [--seed 0]

The last line is JSON. Ratios are seconds of `generate` over ours, greedy, all requests at once, the same number of new
tokens each; `same_greedy_tokens` says that both gave the same ones. Models are fresh Qwen3 of two sizes: that of
configs/model/tiny.yaml, and 4 layers of 256 with a vocabulary of 4096.

vs_generate, vs_generate_small  prompts of one length, where `generate` has nothing to pad: its best case
vs_generate_padded              prompts of a third to five thirds of that length, left-padded for `generate` (tiny size)
stitched, transcript            tiny size: each trajectory forks 4 threads of 100 tokens, joins them and answers with
                                50; the same seeds under either join. `prefilled_tokens` are prompt tokens computed,
                                of `prompt_tokens` asked for.

On a CPU, seconds are CPU seconds of this one-threaded process; the ways take turns and each is timed by its fastest
repeat, because other work on the machine only ever adds time. Keys and values are forgotten before each repeat.
"""

import argparse
import asyncio
import json
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM

from rollout.engine import Sampling
from rollout.engines.calls import EngineStats
from rollout.engines.torch_engine import TorchEngine
from rollout.view import View

PROMPT, HEADER, JOIN, THREADS, THREAD, ANSWER = 40, 4, 4, 4, 100, 50
"""Tokens of a prompt, a thread's header and a join, threads a block, tokens of a thread and of an answer."""


@dataclass(frozen=True)
class Size:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int


TINY = Size(128, 2, 4, 4, 256, 120)
SMALL = Size(256, 4, 8, 4, 768, 4096)


def build(size: Size, seed: int) -> Qwen3ForCausalLM:
    """A fresh float32 model, its logits far enough apart that rounding decides no greedy token."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=32,
        intermediate_size=size.intermediate,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.1,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    return cast(Any, Qwen3ForCausalLM(config)).eval().to("cuda" if torch.cuda.is_available() else "cpu")


class Bench:
    """A model, an engine over it, and a clock."""

    def __init__(self, size: Size, args: argparse.Namespace) -> None:
        self.args, self.size = args, size
        self.draw = random.Random(args.seed)
        self.model = build(size, args.seed)
        self.engine = TorchEngine(self.model, max_context=1024, max_in_flight=max(256, args.requests))

    def timed(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of one run, and its result; keys and values are forgotten before it."""
        self.engine.load_weights(self.model.named_parameters())
        self.engine.reseed(self.args.seed)
        self.engine.stats = EngineStats()
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        start = clock()
        result = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return clock() - start, result

    def ids(self, length: int) -> tuple[int, ...]:
        return tuple(self.draw.randrange(1, self.size.vocabulary) for _ in range(length))

    def against_generate(self, lengths: Sequence[int]) -> tuple[float, bool]:
        """Seconds of `generate` over ours, and whether both gave the same tokens."""
        prompts, tokens = [self.ids(length) for length in lengths], self.args.tokens
        pads = [max(lengths) - length for length in lengths]
        ids = torch.tensor([[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * len(prompt) for pad, prompt in zip(pads, prompts, strict=True)])
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)

        def theirs() -> list[list[int]]:
            options: dict[str, Any] = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens}
            with torch.inference_mode():
                out = cast(Any, self.model).generate(ids, attention_mask=mask, **options)
            return out[:, ids.shape[1] :].tolist()

        def ours() -> list[list[int]]:
            sampling = Sampling(tokens, (), temperature=0.0)
            return [list(c.ids) for c in self.engine.run(self.engine.complete(prompt, sampling) for prompt in prompts)]

        runs = [(self.timed(theirs), self.timed(ours)) for _ in range(self.args.repeats)]
        best = [min(run[way][0] for run in runs) for way in (0, 1)]
        return best[0] / best[1], all(run[0][1] == run[1][1] for run in runs)

    def fork_join(self) -> dict[str, Any]:
        """The same workload under both joins."""
        tasks = [
            (self.ids(PROMPT), [self.ids(HEADER) for _ in range(THREADS)], self.ids(JOIN))
            for _ in range(self.args.trajectories)
        ]
        figures: dict[str, Any] = {}
        for _ in range(self.args.repeats):
            for stitched in (True, False):
                run = [self.trajectory(*task, stitched=stitched, seed=i) for i, task in enumerate(tasks)]
                seconds, _ = self.timed(lambda run=run: self.engine.run(run))
                stats, name = self.engine.stats, "stitched" if stitched else "transcript"
                best = min(seconds, figures.get(name, {"seconds": seconds})["seconds"])
                counts = {"prefilled_tokens": stats.prefilled_tokens, "prompt_tokens": stats.prompt_tokens}
                figures[name] = {"seconds": best, **counts, "sampled_tokens": stats.sampled_tokens}
        return figures

    async def trajectory(
        self,
        prompt: tuple[int, ...],
        headers: list[tuple[int, ...]],
        join: tuple[int, ...],
        *,
        stitched: bool,
        seed: int,
    ) -> None:
        """Forks, joins, answers."""
        turns = [Sampling(THREAD, (), seed=seed * (THREADS + 1) + k) for k in range(THREADS)]
        asked = [View.causal([prompt, header]) for header in headers]
        threads = await asyncio.gather(*map(self.engine.complete, asked, turns))
        bodies = [piece for header, thread in zip(headers, threads, strict=True) for piece in (header, thread.ids)]
        pieces = [prompt, *bodies, join]
        parents = [(), *(above for k in range(THREADS) for above in ((0,), (2 * k + 1,)))]
        view = View.stitched(pieces, [*parents, range(2, len(bodies) + 1, 2)]) if stitched else View.causal(pieces)
        await self.engine.complete(view, Sampling(ANSWER, (), seed=seed * (THREADS + 1) + THREADS))


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    tiny, small = Bench(TINY, args), Bench(SMALL, args)
    even = [PROMPT] * args.requests
    uneven = [tiny.draw.randrange(PROMPT // 3, PROMPT * 5 // 3) for _ in even]
    cases = {"vs_generate": (tiny, even), "vs_generate_padded": (tiny, uneven), "vs_generate_small": (small, even)}
    ratios = {name: case.against_generate(lengths) for name, (case, lengths) in cases.items()}
    return {
        **{name: round(ratio, 3) for name, (ratio, _) in ratios.items()},
        "same_greedy_tokens": all(same for _, same in ratios.values()),
        **tiny.fork_join(),
        **vars(args),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the torch engine against generate, and both joins.")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--trajectories", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(bench(args)))


if __name__ == "__main__":
    main()
