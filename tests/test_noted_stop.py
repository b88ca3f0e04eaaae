"""What a run that was told to stop tells the launcher of its node, and when."""

from pathlib import Path

import pytest
from accelerate import PartialState

from apr_train.checkpoint import Checkpoints, write_json
from apr_train.lifecycle import Stopped
from apr_train.progress import PROGRESS, STOPPED, noted_stop, reached


def test_how_far_a_run_came_changes_with_every_part_and_every_checkpoint(tmp_path: Path) -> None:
    told = [reached(tmp_path)]
    assert told == ["nothing"]
    for step in (1, 2):
        checkpoints = Checkpoints(tmp_path / "checkpoints" / "sft")
        checkpoints.draft(step)
        checkpoints.seal(step)
        told.append(reached(tmp_path))
    write_json(tmp_path / PROGRESS, {"sft": {}})
    told.append(reached(tmp_path))
    write_json(tmp_path / PROGRESS, {"sft": {}, "sft_heldout": {}})
    told.append(reached(tmp_path))
    assert told[1:] == ["sft/step_1", "sft/step_2", "sft", "sft sft_heldout"]


def test_a_stop_is_told_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, world = tmp_path / "told", PartialState(cpu=True)
    monkeypatch.setenv(STOPPED, str(told))
    with noted_stop(tmp_path, world):
        pass
    with pytest.raises(ValueError, match="a failure"), noted_stop(tmp_path, world):
        raise ValueError("a failure")
    assert not told.exists()
    with pytest.raises(Stopped), noted_stop(tmp_path, world):
        raise Stopped("SIGUSR1")
    assert told.read_text() == "nothing\n"
    monkeypatch.delenv(STOPPED)
    with pytest.raises(Stopped), noted_stop(tmp_path, world):  # by hand there is nobody to tell
        raise Stopped("SIGUSR1")
