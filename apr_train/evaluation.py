"""A run that only evaluates: one model folder, the held-out problems, in batches that are noted when they are done."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr_train.checkpoint import read_json, write_json
from apr_train.config import Config, ConfigError
from apr_train.lifecycle import StopFlag
from apr_train.logger import quiet_libraries
from apr_train.problems import draw_problems
from apr_train.progress import Progress, claim, noted_stop
from apr_train.run import evaluate_folder, leave_world, open_parts, start_world
from apr_train.tasks import make_task
from apr_train.weight_sync import fingerprint


def check(config: Config) -> None:
    """What only an evaluation needs of a valid configuration. Raises ConfigError."""
    if not config.eval.problems:
        raise ConfigError("eval.problems=0 leaves nothing to evaluate")
    if config.model.path is None:
        raise ConfigError(
            "model.path is not set: name the folder to evaluate, e.g. model.path=outputs/quickstart/ours/rl"
        )


def evaluate_model(config: Config) -> dict[str, Any]:
    """Evaluates `model.path` into the output folder, or what an earlier start left of it; returns what summary.json
    holds. What a user can mend is a UserError."""
    started = time.perf_counter()
    quiet_libraries()
    world, folder = start_world(config), Path(config.output_dir)
    config = replace(config, algorithm=replace(config.algorithm, steps=0), sft=replace(config.sft, steps=0))
    task, flag = make_task(config.data.task, config.data.options), StopFlag()
    flag.listen()
    problems = draw_problems(config, task)
    judged = Path(str(config.model.path))
    more = {"kind": "an evaluation", "weights": fingerprint(judged) if judged.is_dir() else "of the hub"}
    claim(config, world, folder, [problems.heldout], more=more)
    progress = Progress.load(folder, world)
    if "heldout" in progress.parts:
        if world.is_main_process:
            print(f"{folder} holds this evaluation, finished: resume=never does it again", file=sys.stderr)
        return read_json(folder / "summary.json")
    with open_parts(config, world, folder, task, problems, flag) as parts, noted_stop(folder, world):
        heldout = evaluate_folder(parts, folder / "start", folder)
        summary: dict[str, Any] = {"name": config.name, "seed": config.seed, "ranks": world.num_processes}
        summary |= {"model": config.model.path, "heldout": heldout}
        summary["wall_seconds"] = round(time.perf_counter() - started, 1)
        if world.is_main_process:
            write_json(folder / "summary.json", summary)
        progress.sampler = parts.rollouts.sampler
        progress.once("heldout", lambda: True)
    leave_world(world)
    return summary
