"""Guarded GRPO trainers whose steps go wrong on purpose; under torchrun, on one of several ranks.

torchrun --nproc-per-node 2 tests/guarded_trainers.py STAGE FILE WRONG

STAGE: none, 0, 1, 2 or 3; WRONG: nothing, bad:<step> or memory:<tokens>, on the last rank. Three steps, after which the
main rank saves the weights.
"""

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trainers import TOKENS, make_trainer
from transformers import SchedulerType, TrainerCallback

from apr_train.checkpoint import Checkpoints
from apr_train.compose import one_line_errors
from apr_train.config import Config
from apr_train.guarded import Guard
from apr_train.lifecycle import StopFlag
from apr_train.memory import Pieces
from apr_train.run import leave_world, start_world
from apr_train.saving import Saver
from apr_train.weight_sync import full_weights


def guarded(
    folder: Path, *, steps: int = 5, most: int = 3, halvings: int = 3, alone: bool = True, **options: Any
) -> Any:
    """A trainer of five steps that is guarded and saved."""
    trainer = make_trainer(folder, packed=True, **{"micro_batches": 2} | options)
    trainer.args.max_steps, trainer.args.lr_scheduler_type = steps, SchedulerType.LINEAR
    trainer.attach(Saver(Checkpoints(folder / "checkpoints"), TOKENS.tokenizer, StopFlag()))
    config = Config()
    config.rollout.max_response_tokens, config.algorithm.micro_batches = 500, 2
    config.algorithm.prompts_per_step, config.algorithm.group_size = 4, 4
    config.reward.terms, config.data.task = {"outcome": {}}, "arithmetic"
    trainer.said = []
    pieces = Pieces(folder, "rl", alone, halvings, trainer.said.append)
    settings = {"stage": "rl", "config": asdict(config)}
    trainer.protect(Guard(folder / "bad_steps" / "rl", pieces, settings, most, trainer.said.append), TOKENS.tokenizer)
    return trainer


def weights(trainer: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).clone()


def states(trainer: Any) -> Tensor:
    found = trainer.optimizer.optimizer.state.values()
    return torch.cat([torch.zeros(0), *(value.flatten() for each in found for value in each.values())])


def break_at(trainer: Any, steps: tuple[int, ...], where: str) -> list[tuple[Tensor, Tensor]]:
    """Makes steps (from 1) bad; returns weights and optimizer states after each step."""
    seen: list[tuple[Tensor, Tensor]] = []
    last_layer = trainer.model.model.layers[-1]

    def bad() -> bool:
        return trainer.state.global_step + 1 in steps

    if where == "forward":
        last_layer.mlp.register_forward_hook(lambda module, args, out: out * (math.inf if bad() else 1.0))
    elif where == "gradient":
        last_layer.mlp.down_proj.weight.register_hook(lambda grad: grad * (math.nan if bad() else 1.0))
    else:  # a loss that is no number, with gradients that are
        compute = trainer._compute_loss

        def computed(*args: Any) -> Tensor:
            return compute(*args) + (math.nan if bad() else 0.0)

        trainer._compute_loss = computed

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen.append((weights(trainer), states(trainer)))

    trainer.add_callback(Watch())
    return seen


def limit(model: nn.Module, tokens: int) -> list[int]:
    """Gives the model so much memory: a forward pass of more tokens fails as CUDA's allocator does."""
    passes: list[int] = []

    def check(module: nn.Module, args: Any, kwargs: Any) -> None:
        passes.append(kwargs["input_ids"].shape[-1])
        if passes[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.register_forward_pre_hook(check, with_kwargs=True)
    return passes


def logged(trainer: Any) -> Tensor:
    """(steps, 3): whether each step was skipped, its learning rate, the norm of its gradient; NaN where it has none."""
    rows = [row for row in trainer.state.log_history if "optim/skipped" in row]
    names = ("optim/skipped", "learning_rate", "grad_norm")
    return torch.tensor([[row.get(name, math.nan) for name in names] for row in rows])


def main() -> None:
    stage, file = None if sys.argv[1] == "none" else int(sys.argv[1]), Path(sys.argv[2])
    wrong, _, value = sys.argv[3].partition(":")
    config = Config()
    config.deepspeed.stage = stage
    world = start_world(config)
    with one_line_errors(every_rank=True):
        trainer = guarded(file.parent, steps=3, alone=False, stage=stage)
        if world.is_last_process and wrong == "bad":
            break_at(trainer, (int(value),), "forward")
        if world.is_last_process and wrong == "memory":
            limit(trainer.model, int(value))
        trainer.resume_training()
        weights = {name: tensor.clone() for name, tensor in full_weights(trainer.policy())}
        torch.save(weights | {"logged": logged(trainer)}, file.with_suffix(f".{world.process_index}"))
        leave_world(world)


if __name__ == "__main__":
    main()
