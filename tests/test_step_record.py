"""What the trainer computed of each call stands beside what the sampler said of it, whatever became of the step."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from guarded_trainers import break_at, guarded, limit
from test_dag_trainer import StitchedSampler, dense_logps
from trainers import tiny_model

from apr_train.gap import GapError
from apr_train.revival import Revival
from apr_train.stored import line_of, read_recorded
from rollout.viewer import Recorded, page


def stitched(folder: Path, **options: Any) -> Any:
    """Guarded, over flat, stitched and synchronous trajectories."""
    trainer = guarded(folder, steps=2, **options)
    trainer.rollouts = replace(trainer.rollouts, sampler=StitchedSampler(7, 0.05))
    trainer.revival = Revival(trainer.rollouts)
    return trainer


def recorded_steps(trainer: Any, file: Path, error: type[Exception] | None = None) -> list[list[Recorded]]:
    """Trains; of each step, what is read again of what was handed out."""
    steps: list[int] = []

    def write(drawn: Sequence[Recorded]) -> None:
        steps.append(drawn[0].step)
        with file.open("a") as out:
            out.writelines(map(line_of, drawn))

    trainer.step_record.on_rollouts = write
    if error is None:
        trainer.resume_training()
    else:
        with pytest.raises(error):
            trainer.resume_training()
    assert steps == list(range(1, len(steps) + 1))  # each once
    found = read_recorded([file])
    assert page(found)
    return [[one for one in found if one.step == step] for step in steps]


@pytest.mark.parametrize("short", [False, True])
def test_every_call_has_the_log_probs_of_a_dense_forward_of_it_and_of_no_other(tmp_path: Path, short: bool) -> None:
    """Micro-batches put rows in another order; where memory is short they are cut, and passes are repeated."""
    trainer = stitched(tmp_path)
    if short:
        limit(trainer.model, int(max(sizes_of(stitched(tmp_path / "whole"))) * 0.6))
    first = recorded_steps(trainer, tmp_path / "rollouts.jsonl")[0]
    assert bool(trainer.said) == short
    model, attentions = tiny_model("sdpa"), {one.trajectory.attention for one in first}
    assert attentions == {"causal", "stitched", "synchronous"}
    for one in first:
        assert one.trainer_logprobs is not None
        for own, wanted in zip(one.trainer_logprobs, dense_logps(model, one.trajectory), strict=True):
            assert own is not None
            torch.testing.assert_close(torch.tensor(own), wanted.detach(), atol=1e-5, rtol=0)


def sizes_of(trainer: Any) -> list[int]:
    """Tokens of each pass of a trainer with memory enough."""
    sizes = limit(trainer.model, 10**9)
    trainer.resume_training()
    return sizes


def test_a_call_that_trains_nothing_has_none(tmp_path: Path) -> None:
    for one in recorded_steps(stitched(tmp_path, credit="frozen_threads"), tmp_path / "rollouts.jsonl")[0]:
        assert one.trainer_logprobs is not None
        threads = [one.trajectory.segments[call.sampled].thread for call in one.trajectory.calls]
        assert [own is None for own in one.trainer_logprobs] == [bool(thread) for thread in threads]


def test_a_step_that_the_gap_stops_is_recorded_with_its_gap(tmp_path: Path) -> None:
    trainer = guarded(tmp_path, noise=0.05)
    trainer.gate.stop = 0.01
    (step,) = recorded_steps(trainer, tmp_path / "rollouts.jsonl", GapError)
    scored = [own for one in step for own in one.trainer_logprobs or () if own is not None]
    assert 0 < len(scored) < sum(len(one.trajectory.calls) for one in step)  # of two micro-batches the first


def test_a_record_that_cannot_be_written_does_not_hide_why_the_step_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(drawn: Sequence[Recorded]) -> None:
        raise OSError(28, "No space left on device")

    trainer = guarded(tmp_path, noise=0.05)
    trainer.gate.stop, trainer.step_record.on_rollouts = 0.01, full
    with pytest.raises(GapError):
        trainer.resume_training()
    assert "No space left" in caplog.text


def test_log_probs_that_are_no_numbers_leave_a_line_that_can_be_read(tmp_path: Path) -> None:
    trainer = guarded(tmp_path)
    break_at(trainer, (2,), "forward")
    steps = recorded_steps(trainer, tmp_path / "rollouts.jsonl")
    assert len(steps) == 5
    told = [[own for one in step for own in one.trainer_logprobs or ()] for step in steps]
    assert [all(own is None for own in each) for each in told] == [False, True, False, False, False]
