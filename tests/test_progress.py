"""What a run noted is what the next start reads: parts that are done are not done again, and logs go back with it."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apr_train import logger
from apr_train.checkpoint import CheckpointError
from apr_train.compose import load
from apr_train.config import ConfigError
from apr_train.logger import LogCallback, MetricsLog, keep_lines
from apr_train.progress import Progress, claim


def world(rank: int = 0) -> Any:
    class Nothing:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    return SimpleNamespace(
        is_main_process=not rank, num_processes=1, wait_for_everyone=lambda: None, main_process_first=Nothing
    )


def progress_of(folder: Path, rank: int = 0) -> Progress:
    found = Progress.load(folder, world(rank))
    found.sampler = SimpleNamespace(policy_version=0)  # pyright: ignore[reportAttributeAccessIssue]
    return found


def test_a_part_is_done_once_and_gives_the_same_result_afterwards(tmp_path: Path) -> None:
    first = progress_of(tmp_path)

    def evaluate() -> dict[str, float]:
        assert first.sampler is not None
        first.sampler.policy_version += 3
        return {"accuracy": 0.5}

    assert first.once("sft_heldout", evaluate) == {"accuracy": 0.5}
    second = progress_of(tmp_path)
    assert second.once("sft_heldout", lambda: pytest.fail("done again")) == {"accuracy": 0.5}
    assert second.sampler is not None and second.sampler.policy_version == 3  # what is sampled next is numbered on


def test_a_part_that_failed_is_not_done(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        progress_of(tmp_path).once("rl", fail)
    assert progress_of(tmp_path).once("rl", lambda: 1) == 1


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    assert progress_of(tmp_path, rank=1).once("rl", lambda: 1) == 1
    assert not list(tmp_path.iterdir())


def test_notes_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"progress\.json cannot be read"):
        progress_of(tmp_path)


def test_a_folder_is_claimed_and_a_new_start_lets_it_go(tmp_path: Path) -> None:
    first, other = load(["seed=1"]), load(["seed=2"])
    claim(first, world(), tmp_path, [])
    progress_of(tmp_path).once("rl", lambda: 1)
    with pytest.raises(ConfigError, match="seed was 1 and is 2"):
        claim(other, world(), tmp_path, [])
    claim(load(["seed=2", "resume=force"]), world(), tmp_path, [])
    assert "rl" in progress_of(tmp_path).parts
    claim(load(["seed=2", "resume=never"]), world(), tmp_path, [])
    assert not progress_of(tmp_path).parts


# -- logs --------------------------------------------------------------------------------------------------------------


def line(stage: str, step: int) -> str:
    tree = {f"tree/{name}": float(step) for name in ("trigger_rate", "l_total", "l_critical")}
    return json.dumps({"stage": stage, "step": step, **tree}) + "\n"


def test_lines_after_the_checkpoint_and_a_torn_one_are_dropped_in_place(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(line("rl", step) for step in range(1, 6)) + '{"stage": "rl", "st')
    with file.open("a") as opened:  # the log has it open meanwhile
        keep_lines(file, lambda row: row["step"] <= 3)
        opened.write(line("rl", 4))
    assert [json.loads(row)["step"] for row in file.read_text().splitlines()] == [1, 2, 3, 4]
    keep_lines(tmp_path / "none.jsonl", lambda row: True)
    assert not (tmp_path / "none.jsonl").exists()


def test_a_run_that_goes_back_forgets_only_its_own_stage_and_rings_as_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: list[str] = []

    def init(**options: Any) -> Any:
        ids.append(options["id"])
        return SimpleNamespace(log=lambda *_: None, define_metric=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setattr(logger.wandb, "init", init)
    config = load(["logger.progress=false"])
    (tmp_path / "metrics.jsonl").write_text(line("sft", 9) + "".join(line("rl", step) for step in range(1, 6)))
    with warnings.catch_warnings():
        log = MetricsLog(config, tmp_path, is_main=True)
    callback = LogCallback(log, "rl")
    callback.go_on(3)
    log.close()
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [("sft", 9), ("rl", 1), ("rl", 2), ("rl", 3)]
    assert callback.alarms is not None and len(callback.alarms._seen) == 3
    MetricsLog(config, tmp_path, is_main=True).close()
    assert len(set(ids)) == 1 and len(ids) == 2  # the same W&B run
