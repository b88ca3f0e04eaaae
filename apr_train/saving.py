"""What SFT and GRPO share to survive: whole checkpoints, an agreed stop, an order of problems that can be resumed."""

import math
import random
from collections.abc import Callable, Iterator, Sized
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from apr_train import lora
from apr_train.checkpoint import CheckpointError, Checkpoints, read_json, step_of, write_json
from apr_train.deadlines import Deadlines
from apr_train.guarded import Guard
from apr_train.lifecycle import Halted, StopFlag, Stopped
from apr_train.vocabulary import ours
from apr_train.weight_sync import save_model
from rollout.errors import UserError, nearest

RUN_STATE = "run_state.json"


def nothing() -> dict[str, Any]:
    """Of a stage that has no state of its own."""
    return {}


@dataclass
class Saver:
    """Where a stage saves, when it stops, and what belongs in a checkpoint besides what the trainer knows.

    `state` is asked after each step, on every rank, and written by the first; `restore` gets (step, state) back
    on every rank before training goes on, (0, {}) where it starts.
    """

    checkpoints: Checkpoints
    tokenizer: PreTrainedTokenizerBase
    flag: StopFlag
    state: Callable[[], dict[str, Any]] = nothing
    restore: Callable[[int, dict[str, Any]], None] = lambda step, state: None
    score: str | None = None
    """The metric whose mean since the last checkpoint decides which one is the best."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    saved: int = 0
    """The last step that a checkpoint has."""
    values: list[float] = field(default_factory=list[float])
    rng: dict[str, Any] = field(default_factory=dict[str, Any])
    at_step: dict[str, Any] = field(default_factory=dict[str, Any])
    """The random states, and what `state` said, after the last whole step: a stop may come in the middle of one."""
    update: ExitStack = field(default_factory=ExitStack)
    """Holds the wait that training is in between two steps' beginnings; what has a name of its own counts apart."""


class SavingTrainer:
    """Goes before a transformers Trainer among the bases of a class; `attach` before `train`.

    A checkpoint is a plain Hugging Face folder with the trainer's files beside the weights.
    """

    saver: Saver | None = None
    guard: Guard | None = None
    """Set by GuardedTrainer, which not every trainer is."""

    def attach(self, saver: Saver) -> None:
        """Saves and stops as `saver` says."""
        self.saver = saver
        cast(Any, self).add_callback(_StopCallback(self, saver))

    def stop_agreed(self, wait: str = "collective") -> bool:
        """Whether any rank was told to stop; the same on all. Collective: `wait` is "update" where ranks are not apart
        by rollouts."""
        if self.saver is None:
            return False
        trainer = cast(Any, self)
        asked = torch.tensor(int(bool(self.saver.flag)), device=trainer.accelerator.device)
        with self.saver.deadlines(wait):
            told = int(cast(Tensor, trainer.accelerator.reduce(asked, reduction="sum")))
        if not told:
            return False
        self.saver.flag.set("another rank was told to")
        return True

    def resume_training(self) -> None:
        """`train` from the newest checkpoint, or from the start where there is none.

        Raises CheckpointError as `Checkpoints.newest` does, and Halted, with what was trained saved, if it ends early.
        """
        trainer, saver = cast(Any, self), self.saver
        assert saver is not None
        found = self._newest()
        saver.saved, state = (0, {}) if found is None else (step_of(found), read_json(found / RUN_STATE))
        ranks = trainer.args.world_size
        if trainer.is_deepspeed_enabled and state.get("ranks", ranks) != ranks:
            raise CheckpointError(f"{found} is of {state['ranks']} ranks, and ZeRO cannot go on with {ranks}")
        saver.restore(saver.saved, state)
        if self.guard:
            self.guard.in_a_row = state.get("bad_in_a_row", 0)
        self._wait()
        try:
            with saver.update:
                self._next_step()
                trainer.train(resume_from_checkpoint=None if found is None else str(found))
        except _Trained:
            return
        except Halted:
            self._save_stopped()
            raise
        if self.stop_agreed() and trainer.state.global_step < trainer.state.max_steps:
            raise Stopped(saver.flag.reason)

    def _newest(self) -> Path | None:
        """The checkpoint to go on from, as the first rank finds it: every rank's own look might find another."""
        trainer, saver = cast(Any, self), self.saver
        assert saver is not None
        told: list[Any] = [None, ""]
        if trainer.args.should_save:
            try:
                told[0] = saver.checkpoints.newest()
                saver.checkpoints.set_aside(told[0])
                if told[0] is not None:
                    lora.check_adapter(trainer.model, told[0])
            except CheckpointError as error:
                told[1] = str(error)
        with saver.deadlines("collective", lambda: "a look at the checkpoints"):
            broadcast_object_list(told)
        if told[1]:
            raise CheckpointError(told[1])
        return told[0]

    def _next_step(self) -> None:
        """From here on it is the update of the next step that is waited for."""
        trainer, saver = cast(Any, self), self.saver
        assert saver is not None

        def place() -> str:
            saved = f"step_{saver.saved} is saved" if saver.saved else "nothing is saved yet"
            return f"step {trainer.state.global_step + 1} of {saver.checkpoints.folder.name} ({saved})"

        saver.update.close()
        saver.update.enter_context(saver.deadlines("update", place))

    def _wait(self) -> None:
        assert self.saver is not None
        with self.saver.deadlines("collective", lambda: "a checkpoint"):
            cast(Any, self).accelerator.wait_for_everyone()

    def _save_stopped(self) -> None:
        """Saves the last whole step, if no checkpoint has it yet. Collective."""
        trainer, saver = cast(Any, self), self.saver
        assert saver is not None
        if trainer.state.global_step > saver.saved:
            restore_rng(saver.rng)
            self._save_checkpoint(trainer.model)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Replaces transformers' own, which a kill leaves half written."""
        assert self.saver is not None, "attach a Saver before training"
        with self.saver.deadlines("collective", lambda: "a checkpoint"):
            self._write_checkpoint(self.saver)

    def _write_checkpoint(self, saver: Saver) -> None:
        trainer = cast(Any, self)
        step, main, guard = trainer.state.global_step, trainer.args.should_save, self.guard
        draft = saver.checkpoints.draft(step) if main else saver.checkpoints.path(step).with_suffix(".tmp")
        self._wait()
        policy = cast(PreTrainedModel, trainer.accelerator.unwrap_model(trainer.model))
        with saver.checkpoints.named(step):
            save_model(policy, saver.tokenizer, draft, main)
            trainer._save_optimizer_and_scheduler(str(draft))
            trainer._save_rng_state(str(draft))
            if main:
                trainer.state.save_to_json(str(draft / TRAINER_STATE_NAME))
                state = {"ranks": trainer.args.world_size, "bad_in_a_row": guard.in_a_row if guard else 0}
                write_json(draft / RUN_STATE, saver.at_step | state)
        self._wait()
        if main:
            saver.checkpoints.seal(step, sum(saver.values) / len(saver.values) if saver.values else None)
        saver.saved = step
        saver.values.clear()
        self._wait()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Replaces transformers' own for an adapted model: the weights of its checkpoint are sums. DeepSpeed has files
        of its own, in which nothing frozen is."""
        if lora.is_adapted(cast(Any, self).model):
            lora.load_adapter(cast(Any, self).model, Path(resume_from_checkpoint))
        else:
            cast(Any, super())._load_from_checkpoint(resume_from_checkpoint, model)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Transformers' own, without tables of which some rows are frozen: decay needs no gradient."""
        partial = lora.partly_trained(model)
        return [name for name in cast(Any, super()).get_decay_parameter_names(model) if name not in partial]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Replaces transformers' own outside of DeepSpeed: it maps to `args.device`, which several ranks on a CPU call
        cpu:0 and torch.load does not know."""
        trainer = cast(Any, self)
        if checkpoint is None or trainer.is_deepspeed_enabled:
            cast(Any, super())._load_optimizer_and_scheduler(checkpoint)
            return
        for name, target in ((OPTIMIZER_NAME, trainer.optimizer), (SCHEDULER_NAME, trainer.lr_scheduler)):
            target.load_state_dict(torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True))


class _Trained(Exception):
    """The checkpoint is of the last step: its weights are loaded, and there is nothing to train."""


class _StopCallback(TrainerCallback):
    """After each step: keeps the random states, and ends training, saved, where a stop was agreed on."""

    def __init__(self, trainer: SavingTrainer, saver: Saver) -> None:
        self.trainer, self.saver = trainer, saver

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.save_steps = args.save_steps  # of this start: the checkpoint brought back those of an earlier one
        if state.global_step >= state.max_steps:
            raise _Trained

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer._next_step()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.saver.rng, self.saver.at_step = rng_state(), self.saver.state()
        if self.trainer.stop_agreed("update"):
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        name = self.saver.score
        if name is None or "loss" not in (logs or {}):  # the trainer's closing summary has none
            return
        metrics = ours("rl", logs)
        if name not in metrics:
            near = nearest(name, list(metrics))
            raise UserError(f"checkpoint.keep_best={name} is no metric of this stage" + f"; {near} is" * bool(near))
        if metrics[name] is not None and math.isfinite(metrics[name]):  # else it does not apply to this step
            self.saver.values.append(float(metrics[name]))


class Reseeded(Sampler[int]):
    """A shuffling sampler whose order depends on (seed, epoch) alone: a resumed epoch has the one it began with.

    `shuffled` draws from `generator` whenever it is iterated over, which is once an epoch.
    """

    def __init__(self, shuffled: Sampler[int], generator: torch.Generator, seed: int, epoch: Callable[[], int]) -> None:
        self.shuffled, self.generator, self.seed, self.epoch = shuffled, generator, seed, epoch

    def __len__(self) -> int:
        return len(cast(Sized, self.shuffled))

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch())
        return iter(self.shuffled)


def rng_state() -> dict[str, Any]:
    """Every random state that a checkpoint keeps."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def restore_rng(state: dict[str, Any]) -> None:
    """Sets what `rng_state` returned; nothing for an empty one."""
    if state:
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
