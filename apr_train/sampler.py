"""Which engine samples, and how it is made: stock vLLM where contexts are flat, the torch engine where they are not."""

import json
from pathlib import Path
from typing import Any

from apr_train.config import Config
from apr_train.rollouts import Sampler


def join_of(config: Config) -> str:
    """The join rule: the configured one, or the dialect's own."""
    if config.dialect.join is not None:
        return config.dialect.join
    from rollout.dialects import dialect_class  # here: it imports transformers, which a dry run seldom needs

    return dialect_class(config.dialect.name).joins[0]


def engine_of(config: Config) -> str:
    """vllm | vllm_http | torch. `auto` is vLLM, except where threads stay hidden from each other after the join, or see
    each other token by token: no request to vLLM can say that."""
    if config.rollout.engine != "auto":
        return config.rollout.engine
    return "torch" if join_of(config) == "stitched" or config.strategy.name in ("group_think", "hogwild") else "vllm"


def make_sampler(config: Config, model: Path) -> Sampler:
    """The engine over a model folder. Imported here: a dry run and the tests of other rooms need no vLLM."""
    rollout, engine = config.rollout, engine_of(config)
    if engine == "vllm_http":
        from accelerate import PartialState

        from rollout.engines.vllm_http import VllmHttpEngine

        rank, urls = PartialState().process_index, rollout.urls
        return VllmHttpEngine(
            urls[rank % len(urls)],
            max_context=config.model.max_context,
            weights_folder=model.parent,
            max_in_flight=rollout.max_in_flight,
            timeout_seconds=rollout.call_seconds,
            vocabulary=json.loads((model / "config.json").read_text()).get("vocab_size"),
            sends_to=urls if rank == 0 else (),
            seed=config.seed,
        )
    settings: dict[str, Any] = {
        "dtype": config.model.dtype,
        "max_context": config.model.max_context,
        "max_in_flight": rollout.max_in_flight,
        "kv_cache_gib": rollout.kv_cache_gib,
        "seed": config.seed,
    }
    if engine == "torch":
        from rollout.engines.torch_engine import TorchEngine

        return TorchEngine(model, **settings)
    from rollout.engines.vllm_inprocess import VllmEngine

    return VllmEngine(model, gpu_memory_utilization=rollout.gpu_memory_utilization, **settings)
