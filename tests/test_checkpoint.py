"""A checkpoint is whole or is not there; what is damaged is never read and always named."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from apr_train import checkpoint
from apr_train.checkpoint import MANIFEST, CheckpointError, Checkpoints, DamagedWarning, DiskFull, disk_named, verify


def written(folder: Path, step: int, *, score: float | None = None, keep_last: int = 2, text: str = "weights") -> Path:
    points = Checkpoints(folder, keep_last)
    draft = points.draft(step)
    (draft / "global").mkdir()
    (draft / "model.bin").write_text(text)
    (draft / "global" / "rank0.bin").write_text(f"optimizer {step}")
    return points.seal(step, score)


def test_a_draft_is_no_checkpoint(tmp_path: Path) -> None:
    points = Checkpoints(tmp_path)
    assert points.newest() is None
    (points.draft(3) / "model.bin").write_text("half")
    assert points.newest() is None and points.steps() == []
    path = written(tmp_path, 4)
    assert points.newest() == path and path.name == (tmp_path / "latest").read_text().strip() == "step_4"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("file", ["model.bin", "global/rank0.bin", MANIFEST])
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_a_damaged_newest_checkpoint_falls_back_and_says_so(tmp_path: Path, file: str, how: str) -> None:
    old, new = written(tmp_path, 1), written(tmp_path, 2)
    target = new / file
    if how == "missing":
        target.unlink()
    else:
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(bytes(data[:-3] if how == "truncated" else data))
    if file == MANIFEST and how == "flipped":
        target.write_text("{}")
    with pytest.warns(DamagedWarning, match=r"step_2 is damaged.*going back"):
        assert Checkpoints(tmp_path).newest() == old


def test_what_is_newer_than_the_whole_one_is_set_aside_and_no_longer_counts(tmp_path: Path) -> None:
    old = written(tmp_path, 1)
    for step in (2, 3):
        (written(tmp_path, step, keep_last=3) / "model.bin").unlink()
    points = Checkpoints(tmp_path, keep_last=1)
    points.set_aside(old)
    assert points.steps() == [1] and [path.name for path in tmp_path.glob("*.damaged")] == ["step_3.damaged"]
    written(tmp_path, 2, keep_last=1)
    assert points.steps() == [2]


def test_without_a_whole_checkpoint_nothing_is_trained_from_scratch_by_accident(tmp_path: Path) -> None:
    (written(tmp_path, 1) / "model.bin").unlink()
    with pytest.raises(CheckpointError, match="resume=never"), pytest.warns(DamagedWarning):
        Checkpoints(tmp_path).newest()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([None, 0.1, 0.5, 0.9]), min_size=1, max_size=7), st.integers(1, 3))
def test_the_last_and_the_best_stay(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float | None], k: int
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    for step, score in enumerate(scores, 1):
        written(folder, step, score=score, keep_last=k)
    told = [(score, step) for step, score in enumerate(scores, 1) if score is not None]
    best = {max(told)[1]} if told else set[int]()
    assert set(Checkpoints(folder).steps()) == best | set(range(1, len(scores) + 1)[-k:])


def test_a_step_that_is_written_again_replaces_the_old_one(tmp_path: Path) -> None:
    written(tmp_path, 1, text="old")
    assert (written(tmp_path, 1, text="new") / "model.bin").read_text() == "new"


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_is_named_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    old = written(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "rename", full)))
        with pytest.raises(CheckpointError, match=r"No space left.*step 1 is the last"):
            written(tmp_path, 2)
    assert Checkpoints(tmp_path).newest() == old


def test_a_kill_between_any_two_operations_leaves_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fsync, rename and replace is once the last thing that happens."""

    class Killed(BaseException):
        pass

    def counted(real: Callable[..., object], left: list[None]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            if not left:
                raise Killed
            left.pop()
            return real(*arguments)

        return call

    for last in range(40):
        folder = tmp_path / str(last)
        written(folder, 1, text="old")
        left = [None] * last
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint.os, "fsync", counted(os.fsync, left))
            patched.setattr(Path, "rename", counted(Path.rename, left))
            patched.setattr(Path, "replace", counted(Path.replace, left))
            try:
                written(folder, 2, text="new")
            except Killed:
                pass
            else:
                assert last > 5
                return
        found = Checkpoints(folder).newest()
        assert found is not None
        assert (found / "model.bin").read_text() == {"step_1": "old", "step_2": "new"}[found.name]
        written(folder, 3)  # and the next process goes on
    raise AssertionError("the loop never came to the end of a save")


def test_verify_names_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 1)
    verify(path)
    assert set(json.loads((path / MANIFEST).read_text())["files"]) == {"model.bin", "global/rank0.bin"}
    (path / "global" / "rank0.bin").write_text("optimizer 2")
    with pytest.raises(CheckpointError, match=r"global/rank0\.bin has other contents"):
        verify(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_from_what_else_goes_wrong_with_files(tmp_path: Path) -> None:
    (tmp_path / "cut.pt").write_bytes(b"PK")

    def printed() -> None:
        with open("/dev/full", "w") as file:
            file.write("x")

    for act in (printed, lambda: torch.save(torch.zeros(99999), "/dev/full")):
        with pytest.raises(DiskFull, match="free some space"), disk_named():
            act()
    others = (
        lambda: (tmp_path / "none").read_text(),
        lambda: torch.load(tmp_path / "cut.pt", weights_only=True),
        lambda: AutoTokenizer.from_pretrained(str(tmp_path)),  # its OSError has no number
    )
    for act in others:
        with pytest.raises(Exception) as caught, disk_named():  # noqa: PT011 (each its own kind)
            act()
        assert not isinstance(caught.value, DiskFull)
