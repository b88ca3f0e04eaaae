"""Full weights of a model in training, one tensor at a time, under DDP and every ZeRO stage."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apr_train.checkpoint import sync_folder


def full_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of every parameter, whole, on every rank; tied parameters once.

    A ZeRO-3 parameter is gathered for as long as the caller holds the iterator at it: copy what must outlive that.
    Collective under ZeRO-3: all ranks must iterate to the end.
    """
    for name, parameter in model.named_parameters():
        with _gathered(parameter), torch.no_grad():
            yield name, parameter.data


def saved_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every parameter in a Hugging Face folder's safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict: it has no iterator)
                yield name, file.get_tensor(name)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, is_main: bool) -> None:
    """Writes a plain Hugging Face folder from any ZeRO stage. Collective under ZeRO-3; `is_main` alone writes."""
    state: dict[str, Tensor] = {}
    for name, tensor in full_weights(model):
        if is_main:
            state[name] = tensor.cpu().clone()
    if is_main:
        model.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
        sync_folder(folder)


def _gathered(parameter: nn.Parameter):  # noqa: ANN202 (the context types of DeepSpeed and contextlib share no base)
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])
