"""Times one training step's forward and backward three ways: packed trie, unpadded rows, padded rows.

    python scripts/bench_packing.py [--trajectories 2] [--scale 0.0625] [--repeats 5] [--seed 0]

The last line is JSON. All three ways have the same model, loss and precision, and use the LM head only where a token is
trained:

packed         the calls' trie in one row under tree attention; the time includes building the trie and the plan
unpadded_rows  one call at a time without padding, causal flash attention
padded_rows    all calls in one batch as TRL makes it: prompts padded left, completions padded right, a 2-D mask

Times are CPU seconds of one thread (`wall_seconds` too), so that other work on the machine does not count; the ways
take turns. `bound` = raw_tokens / unique_tokens is what packing could save if all work were per token, and
`fraction_of_bound` the part of it that is reached; `attention_bound` is the same for query-key pairs.
`peak_memory_ratio` = padded_rows / packed of `peak_memory_mb`: the peak resident memory that one step adds in a fresh
process (Linux). `max_dlogp` and `grad_rel_err` compare packed with unpadded rows: all trained log-probabilities, and
the full parameter gradient. The trajectories are random tokens in the shape of ThreadWeaver's Table 8 (arXiv
2512.07843), lengths times `scale`; `trie_build_*` is one of 32k tokens.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from apr_train.packing import pack
from apr_train.tree_attention import plan_attention

VOCABULARY = 1024
"""Makes the LM head about a tenth of the layers' parameters, as it is in Qwen3-8B."""
TOTAL_TOKENS, PARALLEL_RATIO, PROMPT_TOKENS = 11_176, 0.68, 200
"""Response tokens of a trajectory and their share inside threads (Table 8, self-train); the prompt length is ours."""
BLOCKS, THREADS = (4, 5, 6), (2, 3)
OUTLINE, HEADER = 24, 4
"""Tokens of one outline (scaled) and of one thread header (not scaled)."""


@dataclass(frozen=True)
class Calls:
    """Rows (context + sampled tokens), the context length of each, and the advantage of its trajectory."""

    rows: list[list[int]]
    contexts: list[int]
    advantages: list[float]

    @property
    def trained(self) -> int:
        return sum(len(row) - context for row, context in zip(self.rows, self.contexts, strict=True))


def make_trajectory(rng: random.Random, scale: float, blocks: int) -> list[tuple[list[int], int]]:
    """One trajectory's calls as (row, context length): root calls re-read all before, threads the root up to there."""

    def tokens(mean: float) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(max(2, round(scale * mean * rng.uniform(0.5, 1.5))))]

    threads = [rng.choice(THREADS) for _ in range(blocks)]
    thread_mean = TOTAL_TOKENS * PARALLEL_RATIO / (blocks * statistics.mean(THREADS))
    root_mean = TOTAL_TOKENS * (1 - PARALLEL_RATIO) / (blocks + 1) - OUTLINE * statistics.mean(THREADS)
    calls: list[tuple[list[int], int]] = []
    root = tokens(PROMPT_TOKENS)
    for width in threads:
        forked = root + tokens(root_mean) + tokens(width * OUTLINE)
        calls.append((forked, len(root)))
        root = forked
        for number in range(width):
            header = [number] * HEADER
            body = tokens(thread_mean)
            calls.append((forked + header + body, len(forked) + HEADER))
            root = root + header + body
    calls.append((root + tokens(root_mean), len(root)))
    return calls


def make_calls(seed: int, trajectories: int, scale: float) -> Calls:
    rng = random.Random(seed)
    rows, contexts, advantages = [], [], []
    for index in range(trajectories):
        advantage = rng.gauss(0, 1)
        for row, context in make_trajectory(rng, scale, BLOCKS[index % len(BLOCKS)]):
            rows.append(row)
            contexts.append(context)
            advantages.append(advantage)
    return Calls(rows, contexts, advantages)


def make_model(attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=False,
    )
    return Qwen3ForCausalLM._from_config(config, attn_implementation=attention, dtype=torch.float32)


def log_probs(model: PreTrainedModel, hidden: Tensor, labels: Tensor) -> Tensor:
    """log p of labels (T,) from hidden states (T, hidden): the LM head sees only these."""
    return -torch.nn.functional.cross_entropy(model.lm_head(hidden), labels, reduction="none")


def packed(model: PreTrainedModel, calls: Calls) -> list[Tensor]:
    trie = pack(calls.rows, calls.contexts)
    plan = plan_attention(trie)
    hidden = model.model(trie.input_ids[None], position_ids=trie.position_ids[None], tree=plan, use_cache=False)[0][0]
    trained = trie.shift_labels >= 0
    scored = log_probs(model, hidden[trained], trie.shift_labels[trained])
    logps = torch.zeros(len(hidden)).masked_scatter(trained, scored)
    rows = [logps[index[context - 1 :]] for index, context in zip(trie.where, calls.contexts, strict=True)]
    backward(calls, rows)
    return rows


def unpadded_rows(model: PreTrainedModel, calls: Calls) -> list[Tensor]:
    logps = []
    for row, context, advantage in zip(calls.rows, calls.contexts, calls.advantages, strict=True):
        ids = torch.tensor(row)
        hidden = model.model(ids[None, :-1], use_cache=False)[0][0, context - 1 :]
        logps.append(log_probs(model, hidden, ids[context:]))
        (-advantage * logps[-1].sum() / calls.trained).backward()
    return logps


def padded_rows(model: PreTrainedModel, calls: Calls) -> list[Tensor]:
    left = max(calls.contexts)
    width = left + max(len(row) - context for row, context in zip(calls.rows, calls.contexts, strict=True))
    ids = torch.zeros(len(calls.rows), width, dtype=torch.long)
    mask, trained = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for r, (row, context) in enumerate(zip(calls.rows, calls.contexts, strict=True)):
        start = left - context
        ids[r, start : start + len(row)] = torch.tensor(row)
        mask[r, start : start + len(row)] = 1
        trained[r, left : start + len(row)] = True
    hidden = model.model(ids, attention_mask=mask, use_cache=False)[0]
    logps = log_probs(model, hidden[:, :-1][trained[:, 1:]], ids[trained])
    rows = list(logps.split([len(row) - context for row, context in zip(calls.rows, calls.contexts, strict=True)]))
    backward(calls, rows)
    return rows


def backward(calls: Calls, rows: list[Tensor]) -> None:
    """On-policy policy gradient, averaged over all trained tokens."""
    gains = [advantage * logps.sum() for advantage, logps in zip(calls.advantages, rows, strict=True)]
    (-torch.stack(gains).sum() / calls.trained).backward()


WAYS: dict[str, tuple[Callable[[PreTrainedModel, Calls], list[Tensor]], str]] = {
    "packed": (packed, "tree"),
    "unpadded_rows": (unpadded_rows, "sdpa"),
    "padded_rows": (padded_rows, "sdpa"),
}


@dataclass(frozen=True)
class Step:
    """One forward and backward from token rows on: CPU and wall seconds, trained log-probabilities, full gradient."""

    seconds: float
    wall_seconds: float
    logps: Tensor
    gradient: Tensor


def step(way: str, model: PreTrainedModel, calls: Calls) -> Step:
    model.zero_grad(set_to_none=True)
    cpu, wall = time.process_time(), time.perf_counter()
    rows = WAYS[way][0](model, calls)
    seconds, wall_seconds = time.process_time() - cpu, time.perf_counter() - wall
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return Step(seconds, wall_seconds, torch.cat([row.detach() for row in rows]), gradient)


def peak_memory_mb(way: str, args: argparse.Namespace) -> float:
    """Peak resident memory that one step adds in a fresh process, after a small step that loads all that stays."""
    command = [sys.executable, __file__, "--peak-of", way, "--seed", str(args.seed)]
    command += ["--trajectories", str(args.trajectories), "--scale", str(args.scale)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_own_peak(way: str, args: argparse.Namespace) -> float:
    model = make_model(WAYS[way][1])
    step(way, model, make_calls(args.seed, 1, 0.01))
    before = high_water_mb()
    step(way, model, make_calls(args.seed, args.trajectories, args.scale))
    return high_water_mb() - before


def high_water_mb() -> float:
    """The process's own peak resident memory; getrusage would start from the parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure_trie_build(seed: int) -> dict[str, float]:
    """Builds trie and plan of one trajectory whose longest row has about 32k tokens: seconds, peak of traced memory."""
    rng = random.Random(seed)
    calls = make_trajectory(rng, 32_768 / 11_500, blocks=5)
    rows, contexts = [row for row, _ in calls], [context for _, context in calls]
    started = time.perf_counter()
    trie = pack(rows, contexts)
    plan_attention(trie)
    seconds = time.perf_counter() - started
    tracemalloc.start()
    plan_attention(pack(rows, contexts))
    megabytes = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return {
        "trie_build_seconds": round(seconds, 4),
        "trie_build_mb": round(megabytes, 1),
        "trie_build_longest_row": max(map(len, rows)),
        "trie_build_raw_tokens": trie.raw_tokens,
        "trie_build_unique_tokens": trie.unique_tokens,
    }


def bench(args: argparse.Namespace) -> dict[str, object]:
    """Runs all ways in turn, once to warm up and then `repeats` times, and compares medians."""
    calls = make_calls(args.seed, args.trajectories, args.scale)
    models = {way: make_model(attention) for way, (_, attention) in WAYS.items()}
    rounds = []
    for index in range(args.repeats + 1):
        rounds.append({way: step(way, model, calls) for way, model in models.items()})
        report = ", ".join(f"{way} {taken.seconds:.2f} s" for way, taken in rounds[-1].items())
        print(f"round {index} of {args.repeats}{'' if index else ' (warm-up)'}: {report}", flush=True)
    seconds = {way: statistics.median(taken[way].seconds for taken in rounds[1:]) for way in WAYS}
    wall_seconds = {way: statistics.median(taken[way].wall_seconds for taken in rounds[1:]) for way in WAYS}
    memory = {way: peak_memory_mb(way, args) for way in WAYS}
    ours, reference = rounds[-1]["packed"], rounds[-1]["unpadded_rows"]
    trie = pack(calls.rows, calls.contexts)
    bound = trie.raw_tokens / trie.unique_tokens
    row_pairs = sum(len(index) * (len(index) + 1) // 2 for index in trie.where)
    trie_pairs = int((trie.position_ids + 1).sum())
    speedup = seconds["unpadded_rows"] / seconds["packed"]
    error = (ours.gradient - reference.gradient).norm() / reference.gradient.norm()
    return {
        "raw_tokens": trie.raw_tokens,
        "unique_tokens": trie.unique_tokens,
        "bound": round(bound, 3),
        "attention_bound": round(row_pairs / trie_pairs, 3),
        "speedup_vs_unpadded_rows": round(speedup, 3),
        "speedup_vs_padded_rows": round(seconds["padded_rows"] / seconds["packed"], 3),
        "fraction_of_bound": round(speedup / bound, 3),
        "peak_memory_ratio": round(memory["padded_rows"] / memory["packed"], 3),
        "max_dlogp": float((ours.logps - reference.logps).abs().max()),
        "grad_rel_err": float(error),
        **measure_trie_build(args.seed),
        "seconds": {way: round(value, 3) for way, value in seconds.items()},
        "wall_seconds": {way: round(value, 3) for way, value in wall_seconds.items()},
        "peak_memory_mb": {way: round(value) for way, value in memory.items()},
        "rows": len(calls.rows),
        "trained_tokens": calls.trained,
        "longest_row": max(map(len, calls.rows)),
        "trajectories": args.trajectories,
        "scale": args.scale,
        "repeats": args.repeats,
        "seed": args.seed,
        "model_parameters": sum(p.numel() for p in models["packed"].parameters()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed against unpadded and padded rows.")
    parser.add_argument("--trajectories", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1 / 16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak-of", choices=WAYS, help="only print the megabytes that one step of this way adds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak_of:
        print(measure_own_peak(args.peak_of, args))
    else:
        print(json.dumps(bench(args)))


if __name__ == "__main__":
    main()
