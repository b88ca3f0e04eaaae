"""How the runs of a report were made: machine, versions, settings, and the commands that make them again."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from apr_train.report.table import NONE, Table

Get = Callable[[Mapping[str, Any]], Any]


def _setup(key: str, noted: str = "") -> Get:
    """Of an evaluation's setup; else from the settings that any run notes."""
    return lambda run: run.get("setup", {}).get(key, run["identity"].get(noted))


def _identity(key: str) -> Get:
    return lambda run: run["identity"].get(key)


def _trained(key: str) -> Get:
    return lambda run: run["identity"].get(key) if run["kind"] == "training" else None


LINES: dict[str, Get] = {
    "kind": lambda run: run["kind"],
    "folder": lambda run: run["folder"],
    "model": lambda run: run.get("model") or run["identity"].get("model.path"),
    "weights": lambda run: run.get("weights"),
    "task": lambda run: run.get("task") or run["identity"].get("data.task"),
    "seed": lambda run: run.get("seed", run["identity"].get("seed")),
    "data.seed": _identity("data.seed"),
    "problems": _identity("problems"),
    "code": _identity("code"),
    "ranks": lambda run: run.get("ranks", run["identity"].get("ranks")),
    "machine": _setup("machine"),
    "cores": _setup("cores"),
    "devices": _setup("devices"),
    "dtype": _setup("dtype", "model.dtype"),
    "sampled at once, at most": _setup("concurrency", "rollout.max_in_flight"),
    "engine": _identity("rollout.engine"),
    "dialect": _identity("dialect.name"),
    "join": _identity("dialect.join"),
    "SFT steps": _trained("sft.steps"),
    "RL steps": _trained("algorithm.steps"),
    "RL loss": _trained("algorithm.loss"),
    "sampler/trainer gap (nats)": lambda run: run.get("gap_logprob_mean_abs"),
    "wall seconds of the last start": lambda run: run.get("wall_seconds"),
}


def setup_tables(report: Mapping[str, Any]) -> list[Table]:
    """Of the runs, side by side, and of the rows of evaluations."""
    runs = report["runs"]
    lines = {name: [_cell(get(run)) for run in runs] for name, get in LINES.items()}
    packages = list(dict.fromkeys(name for run in runs for name in run.get("setup", {}).get("versions", {})))
    for name in packages:
        lines[name] = [_cell(run.get("setup", {}).get("versions", {}).get(name)) for run in runs]
    rows = [[name, *cells] for name, cells in lines.items() if any(cell != NONE for cell in cells)]
    columns = len(runs) + 1
    return [Table("Runs", ["", *(run["name"] for run in runs)], rows, words=columns, wide=True), _settings(report)]


def _settings(report: Mapping[str, Any]) -> Table:
    """How each row samples."""
    own = {row["row"]: row["settings"] for row in report["rows"] if row["settings"]}
    keys = list(dict.fromkeys(key for each in own.values() for key in each))
    rows = [[label, *(_cell(each.get(key)) for key in keys)] for label, each in own.items()]
    heads = ["row", *(key.replace("_", " ") for key in keys)]
    return Table("Rows, as they sample", heads, rows, words=len(heads))


def _cell(value: object) -> str:
    if value is None or value in ([], {}):
        return NONE
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)
