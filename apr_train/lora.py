"""LoRA by PEFT: a few small matrices are trained beside frozen weights; what is sampled and saved is their sum.

    W x + s B (A x)  in the trainer,  (W + s B A) x  in the sampler,  s = alpha / rank

The sum is computed anew from W each time and W is never written to: adding and subtracting would drift.
"""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig as PeftSettings
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from apr_train.checkpoint import CheckpointError, read_json, write_json
from apr_train.config import LoraConfig
from rollout.engines import thread_vectors
from rollout.errors import UserError

ADAPTER = "adapter"
"""Below a model folder: what was trained, as PEFT reads it, beside the sums that every other tool reads."""
WEIGHTS, BASE = "adapter_model.safetensors", "base.json"
_NAME = "default"


class LoraError(UserError, ValueError):
    """`model.lora` names layers that the model does not have, or that cannot be adapted."""


@dataclass(frozen=True, slots=True)
class Added:
    """What LoRA adds to a weight (out, in): scale * b (out, rank) @ a (rank, in)."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float

    def to(self, weight: Tensor) -> Tensor:
        """Their sum, a new tensor; added in float32 or better, and rounded once."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        return (weight.to(wide) + self.scale * (self.b.to(wide) @ self.a.to(wide))).to(weight.dtype)


def adapt(
    model: PreTrainedModel, config: LoraConfig, tags: Sequence[int], *, seed: int = 0, base: str = ""
) -> PreTrainedModel:
    """The model with fresh adapters, which change nothing yet, and all else frozen but what `config` trains whole.

    `tags` are the ids whose rows of the embedding tables are trained, of the input and the output one. `base` is the
    fingerprint of the frozen weights (of the rank that writes). Raises LoraError.
    """
    settings = PeftSettings(
        r=config.rank,
        lora_alpha=cast(int, config.alpha),
        target_modules="all-linear" if config.targets == ["all-linear"] else list(config.targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    output = model.get_output_embeddings()
    with torch.random.fork_rng(devices=[]):  # the same A on every rank and start, and no other draw than before
        torch.manual_seed(seed)
        try:
            adapted: Any = get_peft_model(model, settings, autocast_adapter_dtype=False)
        except ValueError as error:
            raise LoraError(f"model.lora.targets={config.targets}: {str(error).splitlines()[0]}") from error
    layers = _layers(adapted)
    odd = [name for name, layer in layers.items() if type(layer.get_base_layer()) is not nn.Linear]
    if odd or any(layer.get_base_layer() is output for layer in layers.values()):
        what = odd[0] if odd else "the output embeddings, whose weight the loss reads by itself"
        raise LoraError(f"model.lora.targets={config.targets}: cannot adapt {what}; name linear layers")
    vectors = ["thread_vectors"] if thread_vectors.count_of(model) else []
    settings.modules_to_save = [name for end in (*config.whole, *vectors) for name in _train_whole(model, end)] or None
    first, last = (cast(Any, each).weight for each in (model.get_input_embeddings(), model.get_output_embeddings()))
    settings.ensure_weight_tying = first is last and first.requires_grad
    if config.tags and tags:
        settings.trainable_token_indices = _train_rows(model, sorted(tags))
    adapted.base_fingerprint = base
    return adapted


def is_adapted(model: nn.Module) -> bool:
    """Whether `adapt` made it."""
    return isinstance(model, PeftModel)


def plain_model(model: Any) -> PreTrainedModel:
    """The Hugging Face model inside, its adapters in place."""
    return model.get_base_model() if is_adapted(model) else model


def plain_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Added | None]]:
    """(name in the plain model, parameter, what LoRA adds to it) of all but the adapters; tied parameters once."""
    layers = _layers(model) if is_adapted(model) else {}
    for name, parameter in plain_model(model).named_parameters():
        module, inner, leaf = name.rpartition(".base_layer.")
        if inner and leaf == "weight":
            layer = layers[module]
            added = Added(layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight, layer.scaling[_NAME])
            yield f"{module}.weight", parameter, added
        elif inner:
            yield f"{module}.{leaf}", parameter, None
        elif not _is_adapter(name):
            yield name, parameter, None


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, list[int] | None]]:
    """(name in PEFT's files, parameter, which of its rows; None: all) of all that is trained of an adapted model."""
    rows = cast(dict[str, list[int]], _settings(model).trainable_token_indices or {})
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        module, _, _ = name.rpartition(".")
        tokens = rows.get(module.rpartition(".")[2])
        if tokens is None:
            yield name.replace(f".{_NAME}.", "."), parameter, None
        else:
            yield f"{module}.token_adapter.trainable_tokens_delta", parameter, tokens


def partly_trained(model: nn.Module) -> set[str]:
    """Names of parameters of which some rows are frozen: weight decay would move those."""
    if not is_adapted(model):
        return set()
    partial = {id(parameter) for _, parameter, rows in trained(model) if rows is not None}
    return {name for name, parameter in model.named_parameters() if id(parameter) in partial}


def write_adapter(model: Any, state: dict[str, Tensor], folder: Path) -> None:
    """Writes `state`, by the names of `trained`, to `folder`/adapter."""
    target = folder / ADAPTER
    target.mkdir(parents=True, exist_ok=True)
    twins = {twin: state[name].clone() for name, twin in _twins(model).items()}
    save_file(state | twins, target / WEIGHTS, metadata={"format": "pt"})
    settings = deepcopy(_settings(model))
    settings.inference_mode = True
    settings.target_modules = sorted(cast(set[str], settings.target_modules))
    settings.save_pretrained(str(target))
    write_json(target / BASE, {"sha256": model.base_fingerprint, "folder": settings.base_model_name_or_path})


def check_adapter(model: Any, checkpoint: Path) -> None:
    """Whether training can go on from `checkpoint` with this model. Raises CheckpointError for other frozen weights or
    other adapters, or where one of the two has none. On the rank that has the fingerprint."""
    folder = checkpoint / ADAPTER
    if is_adapted(model) != folder.exists():
        of, now = ("all weights", "an adapter") if is_adapted(model) else ("an adapter", "all weights")
        raise CheckpointError(f"{checkpoint} is of a run that trained {of}, not {now}: resume=never starts anew")
    if not is_adapted(model):
        return
    base = read_json(folder / BASE)
    if base["sha256"] != model.base_fingerprint:
        raise CheckpointError(
            f"{checkpoint} was trained beside other frozen weights than now lie in {base['folder']}: bring back what "
            "model.path held then, or start anew with resume=never"
        )
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no iterator)
    wanted = {name: _shape(parameter, rows) for name, parameter, rows in trained(model)}
    wanted |= {twin: wanted[name] for name, twin in _twins(model).items()}
    if odd := sorted(set(found.items()) ^ set(wanted.items())):
        raise CheckpointError(
            f"{checkpoint} has an adapter of another shape ({odd[0][0]}): set model.lora as it was, or start anew with "
            "resume=never"
        )
    settings, before = _settings(model), read_json(folder / "adapter_config.json")
    for name in ("lora_alpha", "trainable_token_indices"):
        was, now = before.get(name), json.loads(json.dumps(getattr(settings, name)))
        if was != now:
            raise CheckpointError(
                f"{checkpoint} has an adapter whose {name} is {str(was)[:60]} and not {str(now)[:60]}: set "
                "model.lora and the dialect as they were, or start anew with resume=never"
            )


def load_adapter(model: nn.Module, checkpoint: Path) -> None:
    """Sets all that is trained as `checkpoint` has it; one that `check_adapter` passed. Not for sharded parameters."""
    with safe_open(checkpoint / ADAPTER / WEIGHTS, framework="pt") as file, torch.no_grad():
        for name, parameter, rows in trained(model):
            if rows is None:
                parameter.copy_(file.get_tensor(name))
            else:
                parameter[rows] = file.get_tensor(name).to(parameter)


def _train_whole(model: PreTrainedModel, wanted: str) -> list[str]:
    """Trains the modules of which `wanted` is the end of the name, in whole words; returns their names."""
    found: list[str] = []
    for name, module in model.named_modules():
        if name != wanted and not name.endswith(f".{wanted}"):
            continue
        if any(isinstance(each, LoraLayer) for each in module.modules()):
            raise LoraError(
                f"model.lora.whole: {name} has layers that model.lora.targets adapts: name it in one of them"
            )
        found.append(name)
        module.requires_grad_(True)
    if not found:
        raise LoraError(f"model.lora.whole: the model has no {wanted}")
    return found


def _train_rows(model: PreTrainedModel, tags: list[int]) -> dict[str, list[int]]:
    """Trains these rows of both embedding tables, by a gradient that is zero elsewhere; a table that is trained whole
    stays so. Returns what was done, as PEFT notes it."""
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    done: dict[str, list[int]] = {}
    seen: set[int] = set()

    def rows_alone(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[tags] = gradient[tags]
        return kept

    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        table = cast(Any, module).weight
        if id(table) in seen or table.requires_grad:
            continue
        seen.add(id(table))
        table.requires_grad_(True)
        table.register_hook(rows_alone)
        done[names[id(module)]] = tags
    return done


def _twins(model: Any) -> dict[str, str]:
    """In PEFT's files: the input table, where it is trained whole and is the output one too, and that one's name."""
    if not _settings(model).ensure_weight_tying:
        return {}
    plain = plain_model(model)
    names = {id(module): f"base_model.model.{name}.weight" for name, module in plain.named_modules()}
    return {names[id(plain.get_input_embeddings())]: names[id(plain.get_output_embeddings())]}


def _layers(model: nn.Module) -> dict[str, Any]:
    named = plain_model(model).named_modules()
    return {name: module for name, module in named if isinstance(module, LoraLayer)}


def _settings(model: Any) -> PeftSettings:
    return model.peft_config[_NAME]


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _shape(parameter: nn.Parameter, rows: list[int] | None) -> tuple[int, ...]:
    whole = tuple(getattr(parameter, "ds_shape", parameter.shape))  # a ZeRO-3 parameter is empty while it is not used
    return whole if rows is None else (len(rows), *whole[1:])
