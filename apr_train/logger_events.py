"""The lines of metrics.jsonl as TensorBoard's event files, one folder a stage: a view that can be made again."""

import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter


class EventFiles:
    """Writes `folder`/<stage>/events.out.tfevents.*; `tensorboard --logdir` of `folder` shows each stage as a run.

    >>> events = EventFiles(Path("outputs/mine/tensorboard"))
    >>> events.write("rl", 1, {"reward/total": 0.5})
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """One line; a figure that does not apply (None, NaN) is left out."""
        writer = self._writer(stage)
        _add(writer, step, metrics)
        writer.flush()

    def replace(self, stage: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """The stage holds these lines of metrics.jsonl and nothing else: no step twice after a run went back."""
        if stage in self._writers:
            self._writers.pop(stage).close()
        shutil.rmtree(self.folder / stage, ignore_errors=True)
        for line in lines:
            _add(self._writer(stage), line["step"], {k: v for k, v in line.items() if k not in ("stage", "step")})
        if stage in self._writers:
            self._writers[stage].flush()

    def fill_in(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Stages that were logged before event files were asked for."""
        by_stage: dict[str, list[Mapping[str, Any]]] = {}
        for line in lines:
            by_stage.setdefault(line["stage"], []).append(line)
        for stage, own in by_stage.items():
            if not (self.folder / stage).exists():
                self.replace(stage, own)

    def close(self) -> None:
        """Flushes everything."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, stage: str) -> SummaryWriter:
        if stage not in self._writers:
            self._writers[stage] = SummaryWriter(str(self.folder / stage))
        return self._writers[stage]


def _add(writer: SummaryWriter, step: int, metrics: Mapping[str, Any]) -> None:
    for name, value in metrics.items():
        if value is not None and not math.isnan(value):
            writer.add_scalar(name, value, step)
