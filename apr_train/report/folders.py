"""Reads what scripts/evaluate.py and scripts/train.py left in their folders; nothing else is taken for a run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from apr_train.evaluation.samples import HELDOUT, Sample, read_samples
from rollout.errors import UserError

Kind = Literal["evaluation", "training"]
STAGES = ("sft", "rl")
"""Of a training run, in order; each is a row."""
METRICS = "metrics.jsonl"


class ReportError(UserError, ValueError):
    """A folder is no run, or the command line cannot be followed. Says what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: what one way to sample made of one model."""

    label: str
    """What the page calls it: the row's name, and the run's before it where there are several runs."""
    run: str
    name: str
    samples: list[Sample]
    settings: dict[str, Any]
    time: dict[str, float]


@dataclass(frozen=True, slots=True)
class Run:
    """A folder. `summary`, `identity` and `metrics` are empty where the run has not written them (yet).

    >>> read_runs([Path("outputs/judged")])[0].entries[0].label
    'policy'
    """

    name: str
    folder: Path
    kind: Kind
    summary: dict[str, Any]
    identity: dict[str, Any]
    metrics: list[dict[str, Any]]
    entries: list[Entry]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, in the given order. Raises ReportError for a folder that holds none, SamplesError for a file of
    samples that cannot be read."""
    real = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, real, strict=True):
        if real.count(place) > 1:
            raise ReportError(f"{folder} is named twice: name each run once")
    short = [folder.name or str(folder) for folder in real]
    names = [name if short.count(name) == 1 else str(given) for name, given in zip(short, folders, strict=True)]
    return [_read_run(folder, name, alone=len(folders) == 1) for folder, name in zip(folders, names, strict=True)]


def _read_run(folder: Path, name: str, *, alone: bool) -> Run:
    if not folder.is_dir():
        raise ReportError(f"there is no folder {folder}: name what scripts/evaluate.py or scripts/train.py wrote")
    summary, identity = _object(folder / "summary.json"), _object(folder / "identity.json")
    metrics = _metrics(folder / METRICS)
    setup: object = summary.get("setup", {})
    if not isinstance(setup, dict) or not isinstance(cast(dict[str, Any], setup).get("versions", {}), dict):
        raise ReportError(f"{folder}/summary.json has a setup that is none: it is not a run's")
    kind: Kind = "evaluation" if "rows" in summary or identity.get("kind") == "an evaluation" else "training"
    if kind == "evaluation":
        if not summary:
            raise ReportError(f"{folder} holds an evaluation that is not over: start it again, it goes on")
        rows = _rows(folder, summary)
    else:
        rows = {stage: {} for stage in STAGES if (folder / stage / HELDOUT).exists()}
        if not rows and not metrics:
            raise ReportError(f"{folder} holds no run{_hint(folder)}")
    entries = [
        Entry(
            label=row if alone else f"{name}/{row}",
            run=name,
            name=row,
            samples=read_samples(folder / row / HELDOUT),
            settings=told.get("settings") or {},
            time=told.get("time") or {},
        )
        for row, told in rows.items()
    ]
    for entry in entries:
        if not entry.samples:
            raise ReportError(f"{folder / entry.name / HELDOUT} holds no samples: evaluate again")
    return Run(name, folder, kind, summary, identity, metrics, entries)


def _rows(folder: Path, summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of an evaluation's summary. A name that would leave the folder is no row's."""
    rows: object = summary.get("rows")
    if not isinstance(rows, dict) or not rows:
        raise ReportError(f"{folder}/summary.json names no rows: evaluate again with this version")
    for name, told in cast(dict[str, Any], rows).items():
        if not name or "/" in name or "\0" in name or name.startswith("."):
            raise ReportError(f"{folder}/summary.json has a row {name!r}, which is no folder's name")
        if not isinstance(told, dict) or not all(isinstance(told.get(key, {}), dict) for key in ("settings", "time")):
            raise ReportError(f"{folder}/summary.json tells nothing of the row {name!r}: evaluate again")
        if not all(_number(value) for value in told.get("time", {}).values()):
            raise ReportError(f"{folder}/summary.json has a time of the row {name!r} that is no number")
    return cast(dict[str, dict[str, Any]], rows)


def _hint(folder: Path) -> str:
    """The runs beneath a folder that is none itself, as the quick start makes one."""
    below = sorted(each for each in folder.iterdir() if (each / "identity.json").exists())
    if below:
        return f" itself: name {' '.join(map(str, below[:4]))}"
    return ": name a folder that scripts/evaluate.py or scripts/train.py wrote"


def _object(file: Path) -> dict[str, Any]:
    """Empty where there is no such file."""
    if not file.exists():
        return {}
    try:
        found: object = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"{file} cannot be read: it was cut off, or is not a run's") from error
    if not isinstance(found, dict):
        raise ReportError(f"{file} holds no object: it is not a run's")
    return cast(dict[str, Any], found)


def _metrics(file: Path) -> list[dict[str, Any]]:
    """The steps of a run, without a last line that a kill, or the run itself just now, has left half written."""
    if not file.exists():
        return []
    found: list[dict[str, Any]] = []
    try:
        lines = file.read_text().splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise ReportError(f"{file} cannot be read: it is not a run's") from error
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            row: dict[str, Any] = json.loads(line)
            found.append({"stage": str(row["stage"]), "step": int(row["step"]), **_numbers(row)})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ReportError(f"{file}:{number} is no step of a run") from error
    return found


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key not in ("stage", "step") and _number(value)}


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
