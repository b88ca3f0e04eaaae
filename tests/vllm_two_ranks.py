"""Run by torchrun on two ranks: an engine each beside the trainer's gloo group, revived, closed, built again."""

import sys
from typing import Any

import torch.distributed as dist
from tiny_models import reference_logprobs, tiny_qwen3

from rollout.engine import Completion, Sampling
from rollout.engines.vllm_inprocess import VllmEngine

PROMPT = list(range(8))


def sample(engine: VllmEngine, calls: int) -> list[Completion]:
    return engine.run(engine.complete(PROMPT, Sampling(24, ())) for _ in range(calls))


def from_all(value: Any) -> list[Any]:
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for _ in range(2):
        engine = VllmEngine(sys.argv[1], max_context=64, kv_cache_gib=0.1, seed=rank)
        engine.load_weights(tiny_qwen3(4).named_parameters())
        for calls in (1 + 5 * rank, 3):  # ranks need not ask for the same number of calls
            sampled = sample(engine, calls)
            expected = reference_logprobs(tiny_qwen3(4), PROMPT, sampled[-1].ids, 1.0, ())
            assert max(abs(a - b) for a, b in zip(sampled[-1].logprobs, expected, strict=True)) < 1e-4
        ids = from_all([completion.ids for completion in sampled])
        assert ids[0] != ids[1], "ranks of different seeds sampled the same"
        engine.reseed(0)
        ids = from_all([completion.ids for completion in sample(engine, 2)])
        assert ids[0] == ids[1], "ranks of one seed sampled differently"
        engine.reseed(0)
        before = [completion.ids for completion in sample(engine, 2)]
        engine.revive()
        engine.load_weights(tiny_qwen3(4).named_parameters())
        engine.reseed(0)
        assert [completion.ids for completion in sample(engine, 2)] == before, "another engine samples otherwise"
        engine.close()
        assert from_all(rank) == [0, 1], "the trainer's process group is gone"
    print("rank ok", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
