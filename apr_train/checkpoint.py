"""Checkpoints on disk: written whole or not at all, checked before they are read, the newest whole one found."""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.errors import UserError

MANIFEST, LATEST = "manifest.json", "latest"
_BLOCK = 1 << 22
WORKERS = 8
"""Files that are hashed at once."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk, or a user's share of it, says when it is full."""


TORN = "unexpected pos"
"""What torch.save says of a file that it could not write to its end; safetensors names the number of the error."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written or read. Says which file, and what to do."""


class DiskFull(UserError, OSError):
    """Something that a run writes on the way does not fit: metrics, rollouts, a stage's weights."""


class DamagedWarning(UserWarning):
    """A checkpoint is not what its manifest says; an older one is taken."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one stage: `folder`/step_<n>, the name of the newest in `folder`/latest.

    While it is written a checkpoint is called step_<n>.tmp. `seal` makes it durable, names it, and removes all but the
    last `keep_last` and the one of the highest score. One rank calls the methods that write.
    """

    folder: Path
    keep_last: int = 2

    def draft(self, step: int) -> Path:
        """An empty folder to write step `step` into; drafts that an earlier process left are removed."""
        draft = self.path(step).with_suffix(".tmp")
        with self.named(step):
            for stale in self.folder.glob("step_*.tmp"):
                shutil.rmtree(stale)
            draft.mkdir(parents=True)
        return draft

    def path(self, step: int) -> Path:
        """Where step `step` lies once it is sealed."""
        return self.folder / f"step_{step}"

    def seal(self, step: int, score: float | None = None) -> Path:
        """Makes the draft of `step` a checkpoint. Raises CheckpointError where the disk does not take it."""
        draft, path = self.path(step).with_suffix(".tmp"), self.path(step)
        with self.named(step):
            found = list(_files(draft))
            with ThreadPoolExecutor(WORKERS) as pool:  # syncing waits, and hashing lets other threads run
                told = pool.map(_fingerprint, found)
                files = {str(file.relative_to(draft)): each for file, each in zip(found, told, strict=True)}
            write_json(draft / MANIFEST, {"step": step, "score": score, "files": files})
            for each in (*(folder for folder in draft.rglob("*") if folder.is_dir()), draft):
                _sync(each)
            if path.exists():  # the same step, written again after a resume that had gone back
                shutil.rmtree(path)
            draft.rename(path)
            _sync(self.folder)
            replace_text(self.folder / LATEST, f"{path.name}\n")
        self._prune()
        return path

    @contextmanager
    def named(self, step: int) -> Iterator[None]:
        """Turns what a disk refuses, as Python, safetensors or torch.save tell it, into a CheckpointError that says
        from where the run can go on."""
        try:
            yield
        except Exception as error:
            if not _refused(error):
                raise
            steps = self.steps()
            last = f"step {steps[-1]} is the last one" if steps else "there is none before it"
            why = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise CheckpointError(
                f"{self.path(step)} was not written ({why}): {last}; free some space and start again"
            ) from error

    def set_aside(self, newest: Path | None) -> None:
        """Renames what is newer than the checkpoint that is gone on from, which is damaged, to step_<n>.damaged: a
        number that counts would push out the checkpoints that are written next. Of those set aside one stays."""
        for step in self.steps():
            if newest is None or step > step_of(newest):
                for old in self.folder.glob("step_*.damaged"):
                    shutil.rmtree(old)
                self.path(step).rename(self.path(step).with_suffix(".damaged"))

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, whole or not, in order."""
        names = (re.fullmatch(r"step_(\d+)", path.name) for path in self.folder.glob("step_*"))
        return sorted(int(name[1]) for name in names if name)

    def newest(self) -> Path | None:
        """The newest whole checkpoint; a DamagedWarning names each newer one that is not. None where there is none.

        Raises CheckpointError where there are some and none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                verify(self.path(step))
            except CheckpointError as error:
                warnings.warn(f"{error}; going back to the one before it", DamagedWarning, stacklevel=2)
            else:
                return self.path(step)
        if steps:
            raise CheckpointError(f"no checkpoint in {self.folder} is whole: resume=never starts the run anew")
        return None

    def best(self) -> Path | None:
        """The checkpoint of the highest score; None where none has one."""
        scores = {step: score for step in self.steps() if (score := _score(self.path(step))) is not None}
        return self.path(max(scores, key=lambda step: (scores[step], step))) if scores else None

    def _prune(self) -> None:
        kept = {*map(self.path, self.steps()[-self.keep_last :]), self.best()}
        for step in self.steps():
            if self.path(step) not in kept:
                shutil.rmtree(self.path(step))


@contextmanager
def disk_named() -> Iterator[None]:
    """Turns a full disk, as Python, safetensors or torch.save tell it, into DiskFull."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        raise DiskFull(
            f"the disk is full{where}: free some space and start the same command again; it goes on from the last "
            "checkpoint"
        ) from error


def _refused(error: Exception) -> bool:
    """Whether a disk did not take what was written."""
    return isinstance(error, OSError) or any(word in str(error) for word in ("(os error ", TORN))


def _is_full(error: Exception) -> bool:
    """Whether it was for want of room: an OSError without a number (a file that is not there, say) is none of that."""
    number = getattr(error, "errno", None)
    return number in FULL or any(word in str(error) for word in (*(f"(os error {each})" for each in FULL), TORN))


def step_of(checkpoint: Path) -> int:
    """The step whose checkpoint it is."""
    return int(checkpoint.name.removeprefix("step_"))


def verify(checkpoint: Path) -> None:
    """Compares every file with the manifest. Raises CheckpointError for the first that is missing or another."""
    with ThreadPoolExecutor(WORKERS) as pool:
        files = _manifest(checkpoint)["files"]
        damages = pool.map(lambda name: _damage(checkpoint, name, files[name]), files)
        for told in filter(None, damages):
            raise CheckpointError(f"{checkpoint} is damaged: {told}")


def replace_text(file: Path, text: str) -> None:
    """Replaces a file whole and durably: a kill, or another process that reads, finds the old text or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.new")  # each writer's own
    with draft.open("w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    draft.replace(file)
    _sync(file.parent)


def write_json(file: Path, values: dict[str, Any]) -> None:
    """`replace_text` of an object."""
    replace_text(file, json.dumps(values, indent=1) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """An object that `write_json` wrote. Raises CheckpointError where it cannot be read."""
    try:
        found: object = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): it was cut off, or changed by hand") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} cannot be read (it holds no object): it was changed by hand")
    return found


def _manifest(checkpoint: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text())
        assert all(isinstance(told["bytes"], int) and told["sha256"] for told in found["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise CheckpointError(f"{checkpoint} is damaged: it has no readable {MANIFEST}") from error
    return found


def _damage(checkpoint: Path, name: str, told: dict[str, Any]) -> str | None:
    """What is wrong with a file of which the manifest tells `told`."""
    file = checkpoint / name
    if not file.is_file():
        return f"{name} is missing"
    if (size := file.stat().st_size) != told["bytes"]:
        return f"{name} has {size} bytes and not {told['bytes']}"
    try:
        return None if _hash(file) == told["sha256"] else f"{name} has other contents than were written"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


def _score(checkpoint: Path) -> float | None:
    try:
        return _manifest(checkpoint).get("score")
    except CheckpointError:
        return None  # `newest` warns of it


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _fingerprint(file: Path) -> dict[str, Any]:
    _sync(file)
    return {"bytes": file.stat().st_size, "sha256": _hash(file)}


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Waits until a folder's files are on the disk, as what is noted about them will be."""
    for path in (*_files(folder), folder):
        _sync(path)


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
