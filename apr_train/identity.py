"""What makes two starts the same run: settings, problems and ranks; a start that differs is refused by name."""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apr_train.checkpoint import CheckpointError, read_json, write_json
from apr_train.config import Config, ConfigError
from apr_train.tasks.base import Problem
from rollout.shown import one_line

IDENTITY = "identity.json"
FREE = (
    *("name", "output_dir", "dry_run", "resume", "logger", "checkpoint", "deadline", "cluster", "guard"),
    *("rollout.urls", "rollout.kv_cache_gib", "rollout.gpu_memory_utilization"),
    *("rollout.engine_restarts", "rollout.call_seconds"),
    *("algorithm.gap_warn", "algorithm.gap_stop"),
)
"""Keys that may change between two starts of one run: they do not change what it trains."""
NOTES = ("later_code", "forced")
"""What later starts add to the file: no settings."""
SHOWN = 4
"""How many differing keys an error names."""


def identity_of(
    config: Config, problems: Iterable[Sequence[Problem]], ranks: int, free: Sequence[str] = FREE
) -> dict[str, Any]:
    """What must not change between two starts, by dotted names, as JSON has it."""
    settings = {key: value for key, value in _flat(asdict(config)) if not _is_free(key, free)}
    return settings | {"ranks": ranks, "problems": fingerprint(problems), "code": code_version()}


def check_same_run(folder: Path, ours: Mapping[str, Any], *, writes: bool, force: bool = False) -> None:
    """Refuses to go on with a run that was started as another one; notes it where none was started.

    ConfigError names the keys that differ. `force` goes on all the same, and notes under `forced` what was and is; the
    folder stays the first run's. Another version of the code is no reason to refuse: it is noted beside the first.
    """
    file = folder / IDENTITY
    if not file.exists():
        if writes:
            write_json(file, dict(ours))
        return
    theirs = read_json(file)
    defaults = dict(_flat(asdict(Config())))  # a key that did not exist then, at its default, changes nothing
    before = {key: value for key, value in defaults.items() if key in ours} | theirs
    changed = [k for k in {**before, **ours} if before.get(k) != ours.get(k) and k not in ("code", *NOTES)]
    if changed and not force:
        told = ", ".join(f"{key} was {theirs.get(key)} and is {ours.get(key)}" for key in changed[:SHOWN])
        more = f" (and {len(changed) - SHOWN} more)" if len(changed) > SHOWN else ""
        raise ConfigError(
            f"{folder} holds a run with other settings: {told}{more}; take another name=, start anew with "
            "resume=never, or go on all the same with resume=force"
        )
    notes: dict[str, list[Any]] = {name: theirs.get(name, []) for name in NOTES}
    if ours["code"] != theirs["code"]:
        notes["later_code"] = list(dict.fromkeys([*notes["later_code"], ours["code"]]))
    if changed and (told := {key: [before.get(key), ours.get(key)] for key in changed}) not in notes["forced"]:
        notes["forced"] = [*notes["forced"], told]
    noted = theirs | {name: told for name, told in notes.items() if told}
    if writes and noted != theirs:
        write_json(file, noted)


def forget(folder: Path, kind: str | None = None) -> None:
    """Removes what a start would go on from; weights and plots of the old run stay until they are written again.

    The identity goes last: a kill in between leaves a folder that is still the old run's. Raises ConfigError for a run
    of another kind: an evaluation does not take the place of what it judges.
    """
    if (theirs := _kind(folder, kind)) != kind:
        raise ConfigError(
            f"{folder} holds {theirs or 'training'} and not {kind or 'training'}, which resume=never would remove: "
            "take another name="
        )
    own = ("progress.json", "metrics.jsonl", "wandb_id", "summary.json", "requeues", "memory.json", "start_again")
    for name in own:
        (folder / name).unlink(missing_ok=True)
    for file in (*folder.glob("rollouts-rank*.jsonl"), *folder.glob("error-rank*.log")):
        file.unlink()
    for file in (*folder.glob("*.part.jsonl"), *folder.glob("*/*.part.jsonl")):
        file.unlink()
    for old in (folder / "checkpoints", folder / "bad_steps", folder / "tensorboard", *folder.glob("round*")):
        if old.exists():
            shutil.rmtree(old)
    (folder / IDENTITY).unlink(missing_ok=True)


def _kind(folder: Path, ours: str | None) -> str | None:
    """Of the run that a folder holds; ours where it holds none, or none that can be read any more."""
    try:
        return read_json(folder / IDENTITY).get("kind") if (folder / IDENTITY).exists() else ours
    except CheckpointError:
        return ours


def fingerprint(problems: Iterable[Sequence[Problem]]) -> str:
    """A hash of all problems in order: another file, split, seed or generator gives another one."""
    digest = hashlib.sha256()
    for group in problems:
        for problem in group:
            digest.update(json.dumps([problem.id, problem.prompt, problem.answer]).encode())
        digest.update(b"/")
    return digest.hexdigest()[:16]


def code_version() -> str:
    """The commit of the checkout, with `+` where files have changed since; `unknown` outside of one."""
    root = Path(__file__).resolve().parent.parent
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def command_line(ranks: int) -> str:
    """How this process was started, as a reader can start it again; without secrets."""
    launcher = ["torchrun", "--nproc-per-node", str(ranks)] if ranks > 1 else ["python"]
    return one_line(shlex.join([*launcher, *sys.argv]))


def _is_free(key: str, free: Sequence[str]) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in free)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Settings by their dotted names, as JSON has them."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", json.loads(json.dumps(value))))
    return found
