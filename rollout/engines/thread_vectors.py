"""A learned vector per thread and layer, added to keys, before they turn, and to values (ParaThinker's segments).

    key'[t, head] = turn(key[t, head] + vector[layer, thread of t], position of t)
    value'[t, head] = value[t, head] + vector[layer, thread of t]

for every head of keys and values alike; the root (thread 0) has no vector. A model that has them takes
`model(..., threads=...)`, int64, the shape of its ids: the number of each token's thread, from 1, or 0.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rollout.engine import EngineError
from rollout.engines.calls import VECTORS_KEY

DEVIATION = 0.02
"""Of fresh vectors, as published."""


def count_of(model: Any) -> int:
    """For how many threads the model (not wrapped) has a vector; 0: it takes no `threads`."""
    return cast(int, getattr(model.config, VECTORS_KEY, 0))


def install(model: PreTrainedModel, count: int) -> None:
    """Gives the model fresh vectors for threads 1 to `count`, a table (count, head dim) in each layer's attention.

    They are parameters like any other: trained, saved and synchronised by name. Raises EngineError for a model whose
    attention does not project keys and values by itself, or that has vectors already.
    """
    if any(isinstance(getattr(each, "thread_vectors", None), nn.Embedding) for each in model.modules()):
        raise EngineError(f"{type(model).__name__} has thread vectors already")
    layers = [each for each in model.modules() if all(hasattr(each, name) for name in ("k_proj", "v_proj", "head_dim"))]
    if len(layers) != cast(Any, model.config).num_hidden_layers:
        raise EngineError(f"{type(model).__name__} is no plain decoder: it cannot have thread vectors")
    setattr(model.config, VECTORS_KEY, count)
    for layer in cast(list[Any], layers):
        like = layer.k_proj.weight
        layer.thread_vectors = nn.Embedding(count, layer.head_dim, device=like.device, dtype=like.dtype)
        nn.init.normal_(layer.thread_vectors.weight, std=DEVIATION)
        # The hooks are functions of their module alone, so that they hold for its deep copies.
        layer.register_forward_pre_hook(_look_up, with_kwargs=True)
        for last in (getattr(layer, "k_norm", layer.k_proj), layer.v_proj):
            last.register_forward_hook(_add)


def load(path: str | Path, **options: Any) -> Any:
    """`AutoModelForCausalLM.from_pretrained(path, **options)`, with the thread vectors of a folder that has some.

    That alone would leave them out. Raises what it raises, and EngineError as `install` does or for a folder of whose
    config and files only one has vectors.
    """
    # Said aloud: without it transformers asks at a terminal whether to run the Python in the folder.
    options = options | {"trust_remote_code": False}
    config: Any = cast(Any, AutoConfig).from_pretrained(path, revision=options.get("revision"), trust_remote_code=False)
    numbered = getattr(config, VECTORS_KEY, 0)
    kind = _with_vectors(config) if numbered else cast(Any, AutoModelForCausalLM)
    model, report = kind.from_pretrained(path, **options | {"output_loading_info": True})
    odd = [name for name in (*report["missing_keys"], *report["unexpected_keys"]) if "thread_vectors" in name]
    if odd:
        lacks = f"its files hold no {min(odd)}" if numbered else f"config.json does not say {VECTORS_KEY}"
        raise EngineError(f"{path} has lost a part of its thread vectors: {lacks}; export the model again")
    return (model, report) if options.get("output_loading_info") else model


def arguments(model: Any, threads: Tensor | None, like: Tensor) -> dict[str, Tensor]:
    """What a forward of the model (not wrapped) over ids `like` is to be given besides: `threads`, None meaning that
    all tokens are the root's; nothing for a model without vectors.

    Raises EngineError when a thread has no vector: other keys than the sampler's would be trained.
    """
    count = count_of(model)
    if threads is not None and (most := int(threads.max())) > count:
        raise EngineError(
            f"the model has vectors for {count} threads, but a token is of thread {most}: raise model.thread_vectors"
        )
    if not count:
        return {}
    return {"threads": torch.zeros_like(like) if threads is None else threads.view_as(like)}


def _with_vectors(config: Any) -> Any:
    """The model class of a config, with vectors from the start: where `from_pretrained` looks for weights, and
    under whatever it makes them (on no device, sharded)."""
    base = cast(Any, MODEL_FOR_CAUSAL_LM_MAPPING)[type(config)]

    def make(self: Any, config: Any) -> None:
        base.__init__(self, config)
        install(self, getattr(config, VECTORS_KEY))

    # Its name goes into config.json, and transformers reads the source of its module.
    return type(base.__name__, (base,), {"__init__": make, "__module__": base.__module__})


def _look_up(layer: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Takes `threads` and leaves the vector of each token (B, T, head dim) where `_add` finds it."""
    if (threads := kwargs.pop("threads", None)) is None:
        raise EngineError("a model with thread vectors needs to know every token's thread: model(..., threads=...)")
    vectors = layer.thread_vectors((threads - 1).clamp_min(0)) * (threads > 0)[..., None]
    for last in (getattr(layer, "k_norm", layer.k_proj), layer.v_proj):
        getattr(last, "base_layer", last).added = vectors  # LoRA wraps the projection that has the hook
    return args, kwargs


def _add(projection: Any, args: Any, output: Tensor) -> Tensor:
    """Adds the tokens' vectors to every head of keys or values, (B, T, heads, dim) or (B, T, heads x dim)."""
    vectors = projection.__dict__.pop("added").to(output.dtype)  # autocast may project in another one
    if output.shape[:2] != vectors.shape[:2]:
        raise EngineError("thread vectors need keys and values in the order (rows, tokens, heads)")
    return (output.view(*vectors.shape[:2], -1, vectors.shape[-1]) + vectors.unsqueeze(-2)).view_as(output)
