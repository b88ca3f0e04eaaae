"""Where metrics go: metrics.jsonl, W&B, TensorBoard, and one live line in the terminal."""

import json
import logging
import os
import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import datasets
import transformers
import wandb
from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from apr_train.alarms import Alarms
from apr_train.checkpoint import replace_text
from apr_train.config import Config
from apr_train.vocabulary import AXES, find, kind_of, ours
from rollout.shown import one_line, visible

SHOWN = {
    "reward/total": "reward",
    "reward/accuracy": "acc",
    "tree/l_critical": "L_critical",
    "tree/eta": "eta",
    "sft/token_accuracy": "token accuracy",
    "perf/tokens_per_second": "tok/s",
}
"""What the live line shows, and under which label."""


def quiet_libraries() -> None:
    """Leaves errors to be seen: no progress bars, banners or advice from libraries between our own lines."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("wandb", "deepspeed", "DeepSpeed", "torch._library.triton", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


Mode = Literal["online", "offline", "disabled"]


class MetricsLog:
    """One run's metrics on the main rank; a no-op on the others. Close it, also after an error."""

    def __init__(self, config: Config, folder: Path, is_main: bool) -> None:
        self.is_main, self._path = is_main, folder / "metrics.jsonl"
        if not is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._events = None
        if config.logger.tensorboard:
            from apr_train.logger_events import EventFiles  # takes a second, and few want it

            self._events = EventFiles(folder / "tensorboard")
            keep_lines(self._path, lambda line: True)  # a kill may have cut the last one off
            self._events.fill_in(self._lines())
        self._file = self._path.open("a", buffering=1)
        self._wandb = wandb.init(
            project=config.logger.project,
            name=config.name,
            group=config.logger.group,
            id=_run_id(folder / "wandb_id"),
            resume="allow",
            mode=cast(Mode, config.logger.wandb),
            dir=folder,
            config=asdict(config),
            settings=wandb.Settings(silent=True),
        )
        for metrics, axis in (("*", AXES["rl"]), ("sft/*", AXES["sft"]), ("eval/*", AXES["heldout"])):
            self._wandb.define_metric(metrics, step_metric=axis)
        self._console = Console(stderr=True)
        live = config.logger.progress and self._console.is_terminal
        self._live = Live(console=self._console, refresh_per_second=4, transient=True) if live else None
        if self._live:
            self._live.start()

    def write(self, stage: str, step: int, steps: int, metrics: dict[str, Any], started: float, first: int = 0) -> None:
        """One step's metrics under `stage` ("sft", "rl"); shows every step live, else every twentieth part."""
        if not self.is_main:
            return
        self._put(stage, step, metrics)
        line = progress_line(stage, step, steps, metrics, time.perf_counter() - started, first)
        if self._live:
            self._live.update(Text(visible(line)))
        if (not self._live and step % max(1, steps // 20) == 0) or step == steps:
            self._console.print(visible(line), markup=False, highlight=False, soft_wrap=True)

    @property
    def draws(self) -> bool:
        """Whether somebody may look at what is drawn: the main rank, with W&B on."""
        return self.is_main and not self._wandb.disabled

    def draw(self, name: str, html: str) -> None:
        """Shows a whole page under `name` in W&B, at the step whose metrics are written next."""
        if self.draws:
            self._wandb.log({name: wandb.Html(html, inject=False)}, commit=False)

    def heldout(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        """What an evaluation after `step` found, under `stage` ("rl_heldout"), in place of what an earlier start noted:
        one that was cut off before it ended is done again."""
        self.go_on(stage, -1)
        if self.is_main and metrics:
            self._put(stage, step, metrics)

    def _put(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        self._file.write(json.dumps({"stage": stage, "step": step, **metrics}) + "\n")
        os.fsync(self._file.fileno())  # a checkpoint that outlives a power cut has all lines of the steps before it
        self._wandb.log({AXES[kind_of(stage)]: step, **metrics})
        if self._events:
            self._events.write(stage, step, metrics)

    def _lines(self) -> list[dict[str, Any]]:
        return list(map(json.loads, self._path.read_text().splitlines())) if self._path.exists() else []

    def go_on(self, stage: str, step: int) -> list[dict[str, Any]]:
        """Forgets what `stage` logged after `step`, as a run that goes on from there does; what it had logged until
        then. Empty on other ranks."""
        if not self.is_main:
            return []
        keep_lines(self._path, lambda line: line["stage"] != stage or line["step"] <= step)
        left = [line for line in self._lines() if line["stage"] == stage]
        if self._events:
            self._events.replace(stage, left)
        return left

    def say(self, line: str) -> None:
        """A line for the person watching, above the live one."""
        if self.is_main:
            self._console.print(one_line(line), markup=False, highlight=False)

    def close(self) -> None:
        """Flushes everything; safe to call twice."""
        if self.is_main and not self._file.closed:
            if self._live:
                self._live.stop()
            self._file.close()
            if self._events:
                self._events.close()
            self._wandb.finish()


def keep_lines(file: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drops the lines of a JSONL file that are not wanted, and a last one that a kill cut off."""
    if not file.exists():
        return
    draft = file.with_name(f"{file.name}.new")
    with file.open() as old, draft.open("w") as new:
        for line in old:
            if line.endswith("\n") and wanted(json.loads(line)):
                new.write(line)
    with file.open("r+b") as opened:  # in place: the log has it open for appending
        text = draft.read_bytes()
        opened.write(text)
        opened.truncate(len(text))
    draft.unlink()


def _run_id(file: Path) -> str:
    """The W&B run of this folder, made at its first start."""
    if not file.exists():
        replace_text(file, uuid.uuid4().hex[:12] + "\n")
    return file.read_text().strip()


def progress_line(stage: str, step: int, steps: int, metrics: dict[str, Any], seconds: float, first: int = 0) -> str:
    """One line of at most 80 columns; the seconds are of the steps after `first`.

    >>> progress_line("rl", 5, 50, {"reward/total": 0.91, "reward/accuracy": 0.88}, 10.0)
    'rl 5/50 reward 0.91 acc 0.88 left 1:30'
    """
    shown = [f"{label} {_short(metrics[name])}" for name, label in SHOWN.items() if metrics.get(name) is not None]
    left = int(seconds / (step - first) * (steps - step)) if step > first else 0
    return " ".join([f"{stage} {step}/{steps}", *shown, f"left {left // 60}:{left % 60:02d}"])


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


class LogCallback(TrainerCallback):
    """Carries a trainer's logs to the MetricsLog by the names of the vocabulary, and raises the alarms of RL.

    A key that the vocabulary does not hold is said once and not logged: a name that nobody explains helps nobody.
    """

    def __init__(self, log: MetricsLog, stage: str) -> None:
        self.log, self.stage, self.alarms = log, stage, Alarms() if stage == "rl" else None
        self._started, self._first = time.perf_counter(), 0
        self._last = self._started
        self.unknown: set[str] = set()

    def go_on(self, step: int) -> None:
        """Takes the log back to what it was after `step`, and the alarms with it."""
        for line in self.log.go_on(self.stage, step):
            if self.alarms:
                self.alarms.update(line)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self._started, self._first = time.perf_counter(), state.global_step
        self._last = self._started

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if "train_runtime" in logs:  # the trainer's closing summary, not a step
            return
        now = time.perf_counter()
        metrics = ours(kind_of(self.stage), {**logs, "time/step": now - self._last})
        self._last = now
        if self.alarms:
            metrics |= self.alarms.update(metrics)
            for line in self.alarms.news:
                self.log.say(line)
        unknown = {name for name in metrics if find(name) is None}
        if fresh := unknown - self.unknown:
            self.log.say(f"not logged, for apr_train/vocabulary.py does not say what it is: {', '.join(sorted(fresh))}")
        self.unknown |= unknown
        metrics = {name: value for name, value in metrics.items() if name not in unknown}
        self.log.write(self.stage, state.global_step, state.max_steps, metrics, self._started, self._first)
