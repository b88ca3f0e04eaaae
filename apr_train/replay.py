"""Computes a step again that taught nothing, outside of the run, and says where a number stopped being one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from datasets import Dataset
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import AutoTokenizer, PreTrainedModel

from apr_train.arguments import grpo_arguments
from apr_train.bad_steps import read_batches, settings_of
from apr_train.config import Config
from apr_train.gap import GapGate
from apr_train.grpo_trainer import ForkJoinGRPOTrainer
from apr_train.logger import quiet_libraries
from apr_train.masks import masks_of
from apr_train.rollouts import Rollouts
from apr_train.sft import demonstration_trainer
from apr_train.tasks.base import Problem
from rewards.build import make_reward
from rollout.engines import thread_vectors
from rollout.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Finding:
    """One micro-batch, computed again. Lists name what is not finite."""

    loss: float
    layer: str | None
    """The first module, in the order of the forward pass, whose output is not finite."""
    rows: list[int]
    """Calls of an RL batch whose log-probs are not finite; SFT has no rows."""
    gradient_norm: float
    gradients: list[str]


@dataclass(frozen=True, slots=True)
class Replay:
    """What `replay` found."""

    stage: str
    weights: list[str]
    """Parameters that were not finite before the step."""
    batches: list[Finding]

    @property
    def reproduced(self) -> bool:
        """Whether a loss or gradient is no number here either; if not, it was another rank's, or the hardware's."""
        return any(not torch.tensor([each.loss, each.gradient_norm]).isfinite().all() for each in self.batches)


def replay(step: Path, rank: int = 0) -> Replay:
    """Computes `step` (a folder below `bad_steps`) as `rank` did, with the weights of then. Raises BadStepError."""
    quiet_libraries()
    settings = settings_of(step)
    read = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), settings["config"]))
    config = replace(cast(Config, read), deepspeed=Config().deepspeed)  # one process, whatever the run had
    batches, structured = read_batches(step, rank)
    attention = config.model.attention if settings["stage"] == "rl" else "tree"
    dtype = getattr(torch, config.model.dtype)
    model = thread_vectors.load(step / "model", dtype=dtype, attn_implementation=attention)
    tokens = Tokens(AutoTokenizer.from_pretrained(step / "model", trust_remote_code=False))
    masks = masks_of(config.dialect.mask, tokens)
    with TemporaryDirectory() as folder:
        if settings["stage"] == "rl":
            trainer: Any = ForkJoinGRPOTrainer(
                model,
                grpo_arguments(config, Path(folder), 1),
                tokens.tokenizer,
                [Problem("replayed", "", "")] * config.algorithm.prompts_per_step,
                rollouts=Rollouts(*cast(Any, (None,) * 5)),  # for its deadlines, none: there are rows already
                reward=make_reward(config.reward.terms),
                algorithm=config.algorithm,
                gate=GapGate(float("inf"), float("inf")),
                packed=attention == "tree",
                masks=masks,
                on_rollouts=lambda *_: None,
                callbacks=[],
            )
            trainer.structured = structured
        else:
            examples = Dataset.from_list([row for batch in batches for row in batch["examples"]])
            trainer = demonstration_trainer(config, lambda: model, tokens.tokenizer, examples, Path(folder), 1, masks)
            batches = [trainer.data_collator(batch["examples"]) for batch in batches]
        trainer.current_gradient_accumulation_steps = len(batches)
        found = [_compute(trainer, model, batch) for batch in batches]
    return Replay(settings["stage"], _not_finite(model.named_parameters()), found)


def _compute(trainer: Any, model: PreTrainedModel, batch: dict[str, Any]) -> Finding:
    model.train()
    model.zero_grad()
    items = (batch["labels"] != -100).sum() if "labels" in batch else None
    with _watched(model) as layers:
        loss = trainer.compute_loss(model, batch, num_items_in_batch=items)
    loss.backward()
    gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    rows: list[int] = []
    if "advantages" in batch:
        trainer._scoring = batch
        with torch.no_grad():
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
            logps, *_ = trainer._get_per_token_logps_and_entropies(model, ids, mask, batch["completion_ids"].size(1))
        bad = ~(logps.isfinite() | (batch["completion_mask"] == 0)).all(1)
        rows = bad.nonzero()[:, 0].tolist()
    norm = get_total_norm([gradient for _, gradient in gradients])
    return Finding(float(loss.detach()), next(iter(layers), None), rows, float(norm), _not_finite(gradients))


def _not_finite(tensors: Any) -> list[str]:
    return [name for name, tensor in tensors if not tensor.isfinite().all()]


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Collects the names of modules whose output is not finite, in the order in which they end."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [
                each for each in (output if isinstance(output, tuple) else (output,)) if isinstance(each, Tensor)
            ]
            if any(not tensor.isfinite().all() for tensor in tensors):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
