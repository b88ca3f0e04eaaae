"""The torch engine's model: where it comes from, what it must be, its weights, and its forward."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rollout.engine import EngineError
from rollout.engines import thread_vectors
from rollout.engines.calls import first_line
from rollout.engines.torch_attention import NAME, Batch, Ints, Part, Reader
from rollout.engines.torch_cache import Shape


def load_model(model_or_path: PreTrainedModel | str | Path, dtype: str, device: torch.device) -> PreTrainedModel:
    """A model of its own, from a folder or a copy of one in memory. Raises EngineError when there is none."""
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise EngineError(f"{dtype} is no dtype: use float32, bfloat16 or float16")
    if isinstance(model_or_path, PreTrainedModel):
        model = copy.deepcopy(model_or_path)
    elif Path(model_or_path).is_dir() and not (Path(model_or_path) / "config.json").is_file():
        raise EngineError(f"{model_or_path} is no model folder: it has no config.json (save_pretrained writes one)")
    else:
        try:
            model = thread_vectors.load(model_or_path, dtype=kind)
        except Exception as error:  # transformers, safetensors and torch raise many kinds, all of them "no sound model"
            raise EngineError(f"transformers cannot load {model_or_path}: {first_line(error)}") from error
    return cast(Any, model).to(device, kind).eval().requires_grad_(False)


def take_weights(model: PreTrainedModel, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copies all parameters into the model. Raises EngineError when one is unknown, missing or of another shape."""
    missing = dict(model.named_parameters())
    every = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in named_tensors:
            if name not in every:
                raise EngineError(f"the model refuses the trainer's weights: it has no parameter {name}")
            if name not in missing:  # a second name of a tied parameter
                continue
            if every[name].shape != tensor.shape:
                says = f"{name} is {tuple(tensor.shape)}, not {tuple(every[name].shape)}"
                raise EngineError(f"the model refuses the trainer's weights: {says}")
            missing.pop(name).copy_(tensor)
    if missing:
        raise EngineError(f"{len(missing)} parameters were not sent, e.g. {min(missing)}: send all of them")


def forward(model: PreTrainedModel, parts: Sequence[Part], wanted: Ints | None) -> Tensor:
    """One forward over all parts; float32 logits (wanted tokens, vocabulary), of all tokens when `wanted` is None."""
    ids = torch.cat([part.ids for part in parts])
    kept = None if wanted is None else torch.as_tensor(wanted, device=ids.device)
    threads = None
    if thread_vectors.count_of(model):
        threads = torch.cat([torch.zeros_like(part.ids) if part.threads is None else part.threads for part in parts])
    return _run(model, ids, torch.cat([part.positions for part in parts]), Batch(parts), kept, threads)


def _run(
    model: PreTrainedModel,
    ids: Tensor,
    positions: Tensor,
    reader: Reader,
    wanted: Tensor | None,
    threads: Tensor | None = None,
) -> Tensor:
    more: dict[str, Tensor] = {}
    if thread_vectors.count_of(model):
        more["threads"] = (torch.zeros_like(ids) if threads is None else threads)[None]
    out = model(
        input_ids=ids[None],
        position_ids=positions[None],
        attention_mask=ids.new_empty(1, 1, 1, 1),  # a mask of four dimensions is handed on as it is, at no cost
        use_cache=False,
        logits_to_keep=0 if wanted is None else wanted,
        reader=reader,
        **more,
    )
    return cast(Tensor, out.logits)[0].float()


class _Probe:
    """Takes down what every layer's attention asks for."""

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.sizes: set[tuple[torch.Size, torch.Size, torch.Size]] = set()
        self.keys: list[Tensor] = []

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        self.layers.append(module.layer_idx)
        self.sizes.add((query.shape[1:], key.shape[1:], value.shape[1:]))
        self.keys.append(key)
        return torch.zeros_like(query)


@torch.inference_mode()
def _probe(model: PreTrainedModel, position: int) -> _Probe:
    probe, zero = _Probe(), torch.zeros(1, dtype=torch.int64, device=model.device)
    _run(model, zero, zero + position, probe, None)
    return probe


def first_key(model: PreTrainedModel, position: int) -> Tensor:
    """The first layer's key of token 0 at a position (key heads, dim)."""
    return _probe(model, position).keys[0][0]


def adapt(model: PreTrainedModel) -> Shape:
    """Makes the model read slabs, and says what its keys and values are made of. It still works as before by itself.

    Raises EngineError for anything but plain dense causal attention with rotations that depend on positions alone.
    """
    config = cast(Any, model.config)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    wrong = {
        "sliding window attention": getattr(config, "sliding_window", None) is not None,
        "layers of several kinds": set(getattr(config, "layer_types", None) or ()) - {"full_attention"},
        "rotary positions that depend on the length": rope.get("rope_type") in ("dynamic", "longrope"),
        "a soft cap on scores": getattr(config, "attn_logit_softcapping", None) is not None,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise EngineError(f"the torch engine cannot sample a model with {what}: use rollout=vllm")
    try:
        cast(Any, model).set_attn_implementation(NAME)
        probe = _probe(model, 0)
    except (TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the torch engine cannot sample {type(model).__name__}: {error}") from error
    if probe.layers != list(range(config.num_hidden_layers)) or len(probe.sizes) != 1:
        raise EngineError(f"{type(model).__name__} is no plain decoder: the torch engine cannot sample it")
    ((query, key, value),) = probe.sizes
    if key != value or query[0] % key[0]:
        raise EngineError(f"{type(model).__name__} has keys and values of other shapes than the torch engine's")
    return Shape(len(probe.layers), key[0], query[0] // key[0], key[1], model.dtype, model.device)
