"""What SFT and GRPO do when a step goes wrong: skip a gradient that is no number, cut what memory does not hold."""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from apr_train.bad_steps import keep_newest, write_batches
from apr_train.checkpoint import step_of
from apr_train.lifecycle import Halted
from apr_train.memory import Pieces, out_of_memory, peak_memory_gib
from apr_train.weight_sync import save_model

Batch = dict[str, Any]


class NotANumber(Halted):
    """Several steps in a row had a loss or gradient that is NaN or infinite. Raised on every rank; the run is saved."""


@dataclass
class Guard:
    """Where bad steps are written down, how many in a row end the run, and into what micro-batches are cut."""

    folder: Path
    """Of the bad steps of this stage."""
    pieces: Pieces
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """The whole configuration, which a replay needs."""
    most: int = 3
    say: Callable[[str], None] = print
    in_a_row: int = 0
    """Bad steps up to now without a good one in between; a checkpoint keeps it."""


class GuardedTrainer:
    """Goes before a transformers Trainer among the bases of a class; `protect` before `train`.

    A step whose loss or gradient is no number on any rank changes no weight on any rank: DeepSpeed's ZeRO looks for
    that itself, elsewhere torch's optimizer is told to. The step counts, and what it was made of is written down.
    """

    guard: Guard | None = None

    def protect(self, guard: Guard, tokenizer: PreTrainedTokenizerBase) -> None:
        """Guards as `guard` says."""
        self.guard = guard
        self.batches: list[Batch] = []
        """The micro-batches of the step up to now."""
        self.dropped = False
        self.norm: Tensor | None = None
        """Of the step's gradient, before it was clipped: one that overflows leaves zeros behind."""
        self.marks: dict[str, int] = {}
        """How many values each metric of the step had before its first pass."""
        cast(Any, self).add_callback(_GuardCallback(self, guard, tokenizer))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of a micro-batch, in pieces if need be."""
        if self.guard is None:
            return self._pass(model, inputs, num_items_in_batch)
        self.batches.append(self._micro_batch(inputs))
        if len(self.batches) == 1:
            self._mark()
        todo = self.batches[-1:]
        while True:
            try:
                return [self._in_pieces(model, batch, num_items_in_batch) for batch in todo][-1]
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            # Out here, for the error holds what the failed pass had in memory. What it added to the gradients before it
            # failed nobody knows, so the step begins again.
            parts = max(self._parts_of(batch) for batch in todo)
            self.guard.pieces.halve(f"step {cast(Any, self).state.global_step + 1}", parts)
            model.zero_grad()
            self._forget_passes()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            todo = self.batches

    def compute_loss(self, *args: Any, **options: Any) -> Tensor:
        """As the trainer's; one that is no number makes all gradients none, on all ranks, whatever it depends on."""
        loss = cast(Tensor, cast(Any, super()).compute_loss(*args, **options))
        return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)

    def _clip_grad_norm(self, model: Any) -> Any:
        self.norm = cast(Any, super())._clip_grad_norm(model)
        return self.norm

    def _mark(self) -> None:
        """Notes what the step's metrics hold before its first pass."""
        self.marks = {name: len(values) for name, values in cast(Any, self)._metrics["train"].items()}

    def _forget_passes(self) -> None:
        """Drops from the metrics what passes of this step have added: they are done again."""
        for name, values in cast(Any, self)._metrics["train"].items():
            del values[self.marks.get(name, 0) :]

    def _micro_batch(self, inputs: Any) -> Batch:
        """What a pass over `inputs` is made of, ready to be cut and to be written down."""
        return inputs

    def _recorded(self, batch: Batch) -> Batch:
        """What is written down of a batch: tensors, text and numbers."""
        return batch

    def _parts_of(self, batch: Batch) -> int:
        """How many pieces the batch can be cut into that each hold something."""
        raise NotImplementedError

    def _cut(self, batch: Batch, pieces: int) -> list[Batch]:
        """The batch as `pieces` batches whose losses add up to its own; equally many on all ranks."""
        raise NotImplementedError

    def _pass(self, model: Any, batch: Batch, num_items_in_batch: Any) -> Tensor:
        """One forward and one backward."""
        return cast(Any, super()).training_step(model, batch, num_items_in_batch)

    def _in_pieces(self, model: Any, batch: Batch, num_items_in_batch: Any) -> Tensor:
        assert self.guard is not None
        count = self.guard.pieces.count
        parts = self._cut(batch, count) if count > 1 else [batch]
        losses: list[Tensor] = []
        for part in parts[:-1]:
            with self._unsynchronised(model):
                losses.append(self._pass(model, part, num_items_in_batch))
        return sum(losses, self._pass(model, parts[-1], num_items_in_batch))

    @contextmanager
    def _unsynchronised(self, model: Any) -> Iterator[None]:
        """Gradients stay on their rank: another pass of the same step follows."""
        accelerator = cast(Any, self).accelerator
        state, before = accelerator.gradient_state, accelerator.sync_gradients
        state._set_sync_gradients(False)
        try:
            with nullcontext() if cast(Any, self).is_deepspeed_enabled else accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(before)

    def skipped(self) -> bool:
        """Whether the step that has just ended left the weights as they were. The same on all ranks."""
        trainer = cast(Any, self)
        optimizer = trainer.optimizer.optimizer
        return bool(optimizer.overflow) if hasattr(optimizer, "overflow") else self.dropped


class _GuardCallback(TrainerCallback):
    """Around each step: drops a gradient that is no number, counts, writes down, ends the run."""

    def __init__(self, trainer: GuardedTrainer, guard: Guard, tokenizer: PreTrainedTokenizerBase) -> None:
        self.trainer, self.guard, self.tokenizer = trainer, guard, tokenizer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        optimizer = cast(Any, self.trainer).optimizer.optimizer
        if not hasattr(optimizer, "overflow"):  # ZeRO looks for it, and its own optimizer gets parts of the gradient
            optimizer.register_step_pre_hook(self._drop)
        if args.should_save:  # what an earlier start wrote down after the step that this one goes on from
            for later in (each for each in self.guard.folder.glob("step_*") if step_of(each) > state.global_step):
                shutil.rmtree(later)

    def _drop(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Without gradients an optimizer's step changes neither weights nor its own state."""
        trainer = self.trainer
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([cast(Tensor, p.grad) for p in parameters]) if trainer.norm is None else trainer.norm
        trainer.dropped, trainer.norm = not norm.isfinite().item(), None
        if trainer.dropped:
            for parameter in parameters:
                parameter.grad = None

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.batches.clear()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        trainer, skipped = cast(Any, self.trainer), self.trainer.skipped()
        trainer._metrics["train"]["optim/skipped"].append(float(skipped))
        peak = torch.tensor(peak_memory_gib(), device=trainer.accelerator.device)
        trainer._metrics["train"]["perf/peak_memory_gib"].append(trainer.accelerator.gather(peak).max().item())
        self.guard.in_a_row = self.guard.in_a_row + 1 if skipped else 0
        if trainer.accelerator.optimizer_step_was_skipped:  # ZeRO tells the trainer, torch's optimizer does not
            trainer.lr_scheduler.step()  # a schedule goes by steps, whatever became of them
        if skipped:
            self._write_down(state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        running = cast(Any, self.trainer)._tr_loss
        if not running.isfinite():  # the trainer subtracts it from itself, and NaN stays NaN
            running.zero_()
        if self.guard.in_a_row >= self.guard.most:  # not before the step's metrics are out
            raise NotANumber(
                f"{self.guard.in_a_row} steps in a row (guard.bad_steps) had a loss or gradient that is no number: "
                f"scripts/replay_batch.py {self._folder(state.global_step)} says where it begins; the weights are "
                "those before them"
            )

    def _folder(self, step: int) -> Path:
        return self.guard.folder / f"step_{step}"

    def _write_down(self, step: int) -> None:
        trainer, guard = cast(Any, self.trainer), self.guard
        folder, main = self._folder(step), trainer.args.should_save
        batches = [self.trainer._recorded(batch) for batch in self.trainer.batches]
        write_batches(folder, trainer.args.process_index, batches, getattr(trainer, "structured", {}))
        save_model(trainer.accelerator.unwrap_model(trainer.model), self.tokenizer, folder / "model", main)
        if main:
            keep_newest(guard.folder, guard.settings)
        guard.say(f"step {step}: the loss or a gradient is no number, so it was skipped; it lies in {folder}")
