"""Steps that taught nothing because a number was none: written down whole, and read again to see where it began."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from apr_train.checkpoint import read_json, step_of, write_json
from apr_train.dag_packing import TrajectoryCall
from rollout.errors import UserError
from rollout.trajectory import Trajectory

KEPT = 3
"""Bad steps of a stage that stay on the disk, each with the weights that it was computed with."""
SETTINGS = "settings.json"


class BadStepError(UserError, ValueError):
    """A folder holds no step that was written down."""


def write_batches(
    folder: Path, rank: int, batches: Sequence[dict[str, Any]], calls: Mapping[int, TrajectoryCall]
) -> None:
    """What a rank computed a step from, as `folder`/rank<r>.pt: tensors and text, read without running code."""
    folder.mkdir(parents=True, exist_ok=True)
    structured = {number: (call.trajectory.to_json(), call.index) for number, call in calls.items()}
    torch.save({"batches": list(batches), "structured": structured}, folder / f"rank{rank}.pt")


def read_batches(folder: Path, rank: int) -> tuple[list[dict[str, Any]], dict[int, TrajectoryCall]]:
    """What `write_batches` wrote. Raises BadStepError."""
    file = folder / f"rank{rank}.pt"
    if not file.is_file():
        raise BadStepError(f"{folder} has no {file.name}: name a folder like outputs/<name>/bad_steps/rl/step_12")
    read = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(read["structured"], dict):
        raise BadStepError(f"{file} was written by an earlier version, which numbered calls otherwise: replay it there")
    calls = {n: TrajectoryCall(Trajectory.from_json(text), index) for n, (text, index) in read["structured"].items()}
    return read["batches"], calls


def keep_newest(folder: Path, settings: dict[str, Any]) -> None:
    """Notes the settings beside the steps, and removes all but the newest of these."""
    write_json(folder / SETTINGS, settings)
    for old in sorted(folder.glob("step_*"), key=step_of)[:-KEPT]:
        shutil.rmtree(old)


def settings_of(step: Path) -> dict[str, Any]:
    """The configuration of the run that wrote `step` down, with its stage. Raises BadStepError."""
    file = step.parent / SETTINGS
    if not file.is_file():
        raise BadStepError(f"{step} is no step of a run: {file} is missing")
    return read_json(file)
