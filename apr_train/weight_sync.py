"""Full weights of a model in training, one tensor at a time, under DDP and every ZeRO stage."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apr_train import lora
from apr_train.checkpoint import sync_folder


def full_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of every parameter of the plain model, whole, on every rank; tied parameters once. What an
    adapter adds is added in.

    A ZeRO-3 parameter is gathered for as long as the caller holds the iterator at it: copy what must outlive that.
    Collective under ZeRO-3: all ranks must iterate to the end.
    """
    for name, parameter, added in lora.plain_parameters(model):
        with _gathered([parameter] if added is None else [parameter, added.a, added.b]), torch.no_grad():
            yield name, parameter.data if added is None else added.to(parameter.data)


def saved_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every parameter in a Hugging Face folder's safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict: it has no iterator)
                yield name, file.get_tensor(name)


def fingerprint(folder: Path) -> str:
    """A hash of the weights in a folder, whatever else its files say."""
    found: list[str] = []
    for name, tensor in saved_weights(folder):
        numbers: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
        digest = hashlib.sha256(numbers).hexdigest()
        found.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}")
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, is_main: bool) -> None:
    """Writes a plain Hugging Face folder from any ZeRO stage, and in it what LoRA alone trained, from which training
    goes on. Collective under ZeRO-3; `is_main` alone writes."""
    state: dict[str, Tensor] = {}
    for name, tensor in full_weights(model):
        if is_main:
            state[name] = tensor.cpu().clone()
    if is_main:
        lora.plain_model(model).save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
    if lora.is_adapted(model):
        _save_adapter(model, folder, is_main)
    elif is_main and (folder / lora.ADAPTER).exists():  # of a run that was forgotten
        shutil.rmtree(folder / lora.ADAPTER)
    if is_main:
        sync_folder(folder)


def _save_adapter(model: nn.Module, folder: Path, is_main: bool) -> None:
    state: dict[str, Tensor] = {}
    for name, parameter, rows in lora.trained(model):
        with _gathered([parameter]):
            if is_main:
                data = parameter.data if rows is None else parameter.data[rows]
                state[name] = data.cpu().clone().contiguous()
    if is_main:
        lora.write_adapter(model, state, folder)
        sync_folder(folder / lora.ADAPTER)


def _gathered(parameters: Sequence[nn.Parameter]):  # noqa: ANN202 (the contexts of DeepSpeed and contextlib share no base)
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded)
