"""A step that goes wrong costs that step and no more: weights stay numbers, and memory that is short is cut to fit."""

import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from guarded_trainers import break_at, guarded, limit, logged, weights
from torch import Tensor
from trainers import BUDGET, DIALECT, TOKENS, gradient_norms, make_trainer, rows_of_a_step, step_gradient, tiny_model

from apr_train.bad_steps import KEPT, BadStepError, read_batches
from apr_train.checkpoint import Checkpoints, read_json
from apr_train.compose import load
from apr_train.guarded import Guard, NotANumber
from apr_train.lifecycle import StopFlag, Stopped
from apr_train.memory import MEMORY, OutOfMemory, Pieces
from apr_train.replay import replay
from apr_train.rows import cut_rows
from apr_train.saving import Saver
from apr_train.sft import demonstration_rows, demonstration_trainer
from apr_train.tasks import make_task


@pytest.mark.parametrize("where", ["forward", "gradient", "loss"])
def test_a_bad_step_changes_neither_weights_nor_optimizer_and_the_next_one_learns(tmp_path: Path, where: str) -> None:
    trainer = guarded(tmp_path)
    seen = break_at(trainer, (3,), where)
    trainer.resume_training()
    assert torch.equal(seen[2][0], seen[1][0])
    assert torch.equal(seen[2][1], seen[1][1])
    assert not torch.equal(seen[3][0], seen[2][0])
    assert seen[4][0].isfinite().all()
    logged = [row for row in trainer.state.log_history if "optim/skipped" in row]
    assert [row["optim/skipped"] for row in logged] == [0, 0, 1, 0, 0]
    assert all(math.isfinite(row["loss"]) for row in logged[3:])  # NaN minus NaN is NaN
    (line,) = trainer.said
    assert line.startswith("step 3: ")


def test_a_run_whose_steps_are_all_bad_stops_saved_with_good_weights(tmp_path: Path) -> None:
    trainer = guarded(tmp_path)
    seen = break_at(trainer, (2, 4, 5, 6), "forward")
    trainer.args.max_steps = 8
    with pytest.raises(NotANumber, match=r"3 steps in a row .*replay_batch\.py .*step_6 "):
        trainer.resume_training()
    assert len(seen) == 6
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps()[-1] == 6
    assert torch.equal(weights(trainer), seen[2][0])
    assert len(list((tmp_path / "bad_steps" / "rl").glob("step_*"))) == KEPT
    assert trainer.state.log_history[-1]["optim/skipped"] == 1.0  # the last bad step is on record too


def test_a_replay_finds_the_layer_the_calls_and_the_gradients(tmp_path: Path) -> None:
    trainer = guarded(tmp_path)
    with torch.no_grad():  # so that the replay, which knows nothing of hooks, meets it too
        trainer.model.model.layers[1].mlp.up_proj.weight[3, 4] = math.nan
    with pytest.raises(NotANumber):
        trainer.resume_training()
    found = replay(tmp_path / "bad_steps" / "rl" / "step_3")
    assert found.weights == ["model.layers.1.mlp.up_proj.weight"]
    assert len(found.batches) == 2
    assert all(each.layer == "model.layers.1.mlp.up_proj" for each in found.batches)
    rows = read_batches(tmp_path / "bad_steps" / "rl" / "step_3", 0)[0][0]
    assert len(found.batches[0].rows) == int(rows["completion_mask"].any(1).sum())
    assert found.reproduced


def test_a_replay_of_a_step_that_is_fine_here_says_so(tmp_path: Path) -> None:
    """The hook that broke the step is not in the replay: what is left must be finite, and the very gradient."""
    trainer = guarded(tmp_path)
    break_at(trainer, (2,), "gradient")
    trainer.resume_training()
    found = replay(tmp_path / "bad_steps" / "rl" / "step_2")
    assert not found.reproduced
    assert found.weights == []
    assert all(each.rows == [] and each.layer is None and each.gradients == [] for each in found.batches)
    assert all(each.gradient_norm > 0 for each in found.batches)


@pytest.mark.parametrize("pieces", [2, 3, 50])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_gradient_does_not_know_in_how_many_pieces_it_was_computed(
    tmp_path: Path, pieces: int, micro_batches: int
) -> None:
    """50 is more than there are calls: some pieces train nothing."""
    whole = step_gradient(make_trainer(tmp_path / "whole", packed=True))
    trainer = guarded(tmp_path, micro_batches=micro_batches)
    trainer.guard.pieces.count = pieces
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = micro_batches
    for _ in range(micro_batches):
        trainer.training_step(trainer.model, rows_of_a_step(trainer))
    cut = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    assert float((cut - whole).norm() / whole.norm()) < 1e-5


def test_a_cut_neither_loses_nor_repeats_a_call(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, packed=True)
    rows = trainer._prepare_inputs(rows_of_a_step(trainer))
    del rows["num_items_in_batch"]
    parts = cut_rows(rows, 3)
    assert torch.equal(torch.cat([part["advantages"] for part in parts]), rows["advantages"])
    tokens = [int(part["prompt_mask"].sum() + part["completion_mask"].sum()) for part in parts]
    longest = int((rows["prompt_mask"].sum(1) + rows["completion_mask"].sum(1)).max())
    assert max(tokens) - min(tokens) <= 2 * longest


def test_memory_that_is_short_changes_the_pieces_and_not_the_run(tmp_path: Path) -> None:
    whole = guarded(tmp_path / "whole")
    sizes = limit(whole.model, 10**9)
    whole.resume_training()
    short = guarded(tmp_path / "short")
    passes = limit(short.model, int(max(sizes) * 0.6))
    short.resume_training()
    assert short.guard.pieces.count == 2
    assert read_json(tmp_path / "short" / MEMORY) == {"rl": 2}
    assert gradient_norms(short) == pytest.approx(gradient_norms(whole), rel=1e-3)
    norm = weights(whole).norm()
    assert float((weights(short) - weights(whole)).norm() / norm) < 1e-3
    (line,) = short.said
    assert line.startswith("out of memory in step ")
    assert sum(size > max(sizes) * 0.6 for size in passes) == 1  # it fails once, and not in every step


def test_a_backward_that_does_not_fit_leaves_nothing_of_itself_in_the_gradient(tmp_path: Path) -> None:
    """It fails in the second micro-batch, after half of the layers have got their gradients."""
    whole = step_gradient(make_trainer(tmp_path / "whole", packed=True, micro_batches=2))
    trainer = guarded(tmp_path)
    failed: list[int] = []

    def fail(grad: Tensor) -> None:
        if not failed and trainer._step == 1:
            failed.append(1)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    trainer.model.model.layers[0].mlp.up_proj.weight.register_hook(fail)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    for _ in range(2):
        trainer.training_step(trainer.model, rows_of_a_step(trainer))
    assert failed
    found = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    assert float((found - whole).norm() / whole.norm()) < 1e-5


def test_what_never_fits_ends_with_what_to_lower(tmp_path: Path) -> None:
    trainer = guarded(tmp_path, halvings=2)
    limit(trainer.model, 3)
    with pytest.raises(OutOfMemory, match=r"in 4 pieces \(guard\.halvings=2\): lower rollout"):
        trainer.resume_training()


def test_ranks_that_run_out_together_all_end_by_name(tmp_path: Path) -> None:
    """They write the same file."""
    told: list[str] = []

    def halve() -> None:
        for _ in range(20):
            pieces = Pieces(tmp_path, "rl", alone=False)
            pieces.count = 1
            with pytest.raises(OutOfMemory) as error:
                pieces.halve("step 7", parts=9)
            told.append(str(error.value))

    ranks = [Thread(target=halve) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(told) == 80 and len(set(told)) == 1
    assert read_json(tmp_path / MEMORY) == {"rl": 2}


def test_one_call_that_does_not_fit_ends_at_once(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, "rl", alone=True, say=lambda _: None)
    pieces.halve("step 7", parts=2)
    with pytest.raises(OutOfMemory, match="it has 2 to cut"):
        pieces.halve("step 7", parts=2)
    assert Pieces(tmp_path, "rl", alone=True).count == 2


def test_a_last_batch_of_fewer_demonstrations_than_pieces_is_no_lack_of_memory(tmp_path: Path) -> None:
    whole, cut = sft_trainer(tmp_path / "whole"), sft_trainer(tmp_path / "cut")
    batch = whole.data_collator(list(whole.train_dataset.select(range(2))))
    cut.guard.pieces.count = 4
    for trainer in (whole, cut):
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model, dict(batch), (batch["labels"] != -100).sum())
    wanted, found = (torch.cat([p.grad.flatten() for p in each.model.parameters()]) for each in (whole, cut))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_a_step_of_an_earlier_version_is_refused_and_not_read_wrongly(tmp_path: Path) -> None:
    torch.save({"batches": [], "structured": []}, tmp_path / "rank0.pt")
    with pytest.raises(BadStepError, match="by an earlier version"):
        read_batches(tmp_path, 0)


def test_bad_steps_in_a_row_are_counted_over_a_stop(tmp_path: Path) -> None:
    first = guarded(tmp_path, steps=8)
    break_at(first, (1, 2), "forward")
    first.step_record.on_rollouts = lambda drawn: first.saver.flag.set("the test") if drawn[0].step == 2 else None
    with pytest.raises(Stopped):
        first.resume_training()
    second = guarded(tmp_path, steps=8)
    break_at(second, (3, 4, 5), "forward")
    with pytest.raises(NotANumber):
        second.resume_training()
    assert second.state.global_step == 3


def test_what_was_written_down_after_the_step_gone_back_to_is_forgotten(tmp_path: Path) -> None:
    for step in (7, 8, 9):
        (tmp_path / "bad_steps" / "rl" / f"step_{step}").mkdir(parents=True)
    trainer = guarded(tmp_path)
    break_at(trainer, (3,), "forward")
    trainer.resume_training()
    assert [each.name for each in (tmp_path / "bad_steps" / "rl").glob("step_*")] == ["step_3"]


def test_a_gradient_that_overflows_when_it_is_measured_is_skipped(tmp_path: Path) -> None:
    trainer = guarded(tmp_path)
    seen = break_at(trainer, (), "forward")
    weight = trainer.model.model.layers[-1].mlp.down_proj.weight
    weight.register_hook(lambda grad: torch.full_like(grad, 1e30) if trainer.state.global_step == 2 else grad)
    trainer.resume_training()
    assert torch.equal(seen[2][0], seen[1][0])


def test_a_step_done_again_is_logged_once(tmp_path: Path) -> None:
    whole, short = guarded(tmp_path / "whole", steps=1), guarded(tmp_path / "short", steps=1)
    sizes = limit(whole.model, 10**9)
    whole.resume_training()
    limit(short.model, max(sizes) - 1)
    short.resume_training()
    assert short.guard.pieces.count > 1
    assert short.gate.count == short.guard.pieces.count * 2
    logged = [next(row for row in each.state.log_history if "entropy" in row) for each in (whole, short)]
    assert logged[1]["entropy"] == pytest.approx(logged[0]["entropy"], rel=0.2)
    assert short.gate.mean == pytest.approx(whole.gate.mean, rel=0.5)


def test_one_of_several_ranks_notes_the_halving_for_the_next_start_of_all(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, "rl", alone=False)
    with pytest.raises(OutOfMemory, match="in 2 pieces from the next start on: start the same command again"):
        pieces.halve("step 7", parts=9)
    assert Pieces(tmp_path, "rl", alone=False).count == 2
    assert Pieces(tmp_path, "sft", alone=False).count == 1


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    trainer = guarded(tmp_path)
    trainer.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no such kernel")))
    with pytest.raises(RuntimeError, match="no such kernel"):
        trainer.resume_training()


def sft_trainer(folder: Path) -> Any:
    """Three steps of six demonstrations."""
    config = load(["experiment=quickstart", "sft.steps=3", "sft.problems_per_step=6", "sft.warmup_steps=0"])
    task = make_task("arithmetic", {"parts_max": 3, "steps_min": 3, "steps_max": 4})
    problems = task.problems("train", 18, 0)
    rows = demonstration_rows(task, problems, DIALECT, TOKENS, BUDGET, 1000, parallel_share=0.5, seed=0)
    trainer: Any = demonstration_trainer(config, lambda: tiny_model("tree"), TOKENS.tokenizer, rows, folder, 1)
    trainer.attach(Saver(Checkpoints(folder / "checkpoints"), TOKENS.tokenizer, StopFlag()))
    settings = {"stage": "sft", "config": asdict(config)}
    trainer.protect(Guard(folder / "bad_steps", Pieces(folder, "sft", True), settings), TOKENS.tokenizer)
    return trainer


def test_a_warm_start_short_of_memory_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, short = sft_trainer(tmp_path / "whole"), sft_trainer(tmp_path / "short")
    sizes = limit(whole.model, 10**9)
    whole.resume_training()
    limit(short.model, int(max(sizes) * 0.6))
    short.resume_training()
    assert short.guard.pieces.count == 2
    losses = [[row["loss"] for row in each.state.log_history if "loss" in row] for each in (whole, short)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert float((weights(short) - weights(whole)).norm() / weights(whole).norm()) < 1e-3


def test_a_bad_step_of_a_warm_start_is_skipped_and_replayed(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path)
    seen = break_at(trainer, (2,), "gradient")
    trainer.resume_training()
    assert torch.equal(seen[1][0], seen[0][0])
    assert not torch.equal(seen[2][0], seen[1][0])
    found = replay(tmp_path / "bad_steps" / "step_2")
    assert not found.reproduced
    assert found.batches[0].gradient_norm > 0


RANKS = [(2, "none"), *(pytest.param(2, stage, marks=pytest.mark.slow) for stage in ("0", "1", "2", "3"))]


def on_ranks(folder: Path, ranks: int, stage: str, wrong: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [str(Path(__file__).parent / "guarded_trainers.py"), stage, str(folder / "weights.pt"), wrong]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


def saved(folder: Path, rank: int) -> tuple[Tensor, Tensor]:
    """The weights, and what `logged` says."""
    found = torch.load(folder / f"weights.{rank}", weights_only=True)
    told = found.pop("logged")
    return torch.cat([tensor.flatten() for tensor in found.values()]), told


@pytest.mark.parametrize(("ranks", "stage"), RANKS)
def test_a_number_that_is_none_on_one_rank_is_skipped_by_all(tmp_path: Path, ranks: int, stage: str) -> None:
    alone = guarded(tmp_path / "alone", steps=3)
    break_at(alone, (2,), "forward")
    alone.resume_training()
    done = on_ranks(tmp_path, ranks, stage, "bad:2")
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(ranks):
        found, told = saved(tmp_path, rank)
        assert told[:, 0].tolist() == [0.0, 1.0, 0.0]
        assert told[:, 1].tolist() == logged(alone)[:, 1].tolist()  # the rates
        assert float((found - weights(alone)).norm() / weights(alone).norm()) < 1e-4
    assert (tmp_path / "bad_steps" / "rl" / "step_2" / f"rank{ranks - 1}.pt").is_file()


@pytest.mark.parametrize(("ranks", "stage"), RANKS)
def test_ranks_that_start_again_after_one_ran_out_of_memory_are_cut_alike(
    tmp_path: Path, ranks: int, stage: str
) -> None:
    alone = guarded(tmp_path / "alone", steps=3)
    sizes = limit(alone.model, 10**9)
    alone.resume_training()
    memory = f"memory:{int(max(sizes) * 0.5)}"
    done = on_ranks(tmp_path, ranks, stage, memory)
    assert done.returncode != 0
    assert f"error: rank {ranks - 1}: out of memory in step" in done.stderr, done.stderr[-3000:]
    for _ in range(2):  # half may not do
        done = on_ranks(tmp_path, ranks, stage, memory)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(tmp_path / MEMORY)["rl"] in (2, 4)
    found, told = saved(tmp_path, 0)
    assert float((found - weights(alone)).norm() / weights(alone).norm()) < 1e-4
    norms = told[:, 2][told[:, 2].isfinite()]
    assert len(norms) in ((0, 3) if stage == "0" else (3,))  # DeepSpeed's plain optimizer does not tell them all
    assert norms.tolist() == pytest.approx(logged(alone)[: len(norms), 2].tolist(), rel=1e-3)  # Adam hides a factor
