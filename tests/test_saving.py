"""A trainer that is stopped anywhere and started again ends where one ends that was left alone, bit for bit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import RandomSampler
from trainers import TOKENS, PreparedSampler, make_trainer

from apr_train.checkpoint import Checkpoints, DamagedWarning
from apr_train.deadlines import Deadlines
from apr_train.grpo_trainer import ForkJoinGRPOTrainer
from apr_train.lifecycle import StopFlag, Stopped
from apr_train.saving import Reseeded, Saver, _StopCallback
from apr_train.vocabulary import reproducible
from rollout.errors import UserError
from rollout.viewer import Recorded

STEPS = 5


def trainer_of(
    folder: Path, *, every: int = 2, stop: Callable[[int], bool] = lambda step: False, model: Any = None
) -> Any:
    """Five steps over two epochs; `stop` is asked as a step's rollouts are handed out, before any weight changes."""
    trainer = make_trainer(folder, packed=True, micro_batches=2, model=model)
    trainer.args.max_steps, trainer.args.save_steps = STEPS, every or 1
    trainer.args.save_strategy = "steps" if every else "no"
    sampler, flag = trainer.rollouts.sampler, StopFlag()
    assert isinstance(sampler, PreparedSampler)
    sampled: list[int] = []

    def state() -> dict[str, Any]:
        return {"rng": sampler.rng.getstate(), "version": sampler.policy_version}

    def restore(step: int, state: dict[str, Any]) -> None:
        sampled.append(-step)
        if state:
            version, words, gauss = state["rng"]
            sampler.rng.setstate((version, tuple(words), gauss))
            sampler.policy_version = state["version"]

    def on_rollouts(drawn: Sequence[Recorded]) -> None:
        step = drawn[0].step
        sampled.append(step)
        if stop(step):
            flag.set("test")

    trainer.step_record.on_rollouts, trainer.sampled = on_rollouts, sampled
    trainer.attach(Saver(Checkpoints(folder / "checkpoints"), TOKENS.tokenizer, flag, state, restore))
    return trainer


def weights(trainer: ForkJoinGRPOTrainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def curve(trainer: ForkJoinGRPOTrainer) -> list[dict[str, float]]:
    return [
        {k: v for k, v in reproducible(row).items() if not k.startswith("train_")}
        for row in trainer.state.log_history
        if "loss" in row
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    trainer = trainer_of(tmp_path_factory.mktemp("alone"))
    trainer.resume_training()
    return trainer


@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_stop_at_any_step_changes_nothing(tmp_path: Path, alone: Any, step: int, every: int) -> None:
    """The flag is set after the rollouts of a step; the step ends, is saved, and the next process begins the next."""
    first = trainer_of(tmp_path, every=every, stop=lambda now: now == step)
    with pytest.raises(Stopped):
        first.resume_training()
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == step
    second = trainer_of(tmp_path, every=every)
    second.resume_training()
    assert second.sampled == [-step, *range(step + 1, STEPS + 1)]
    assert torch.equal(weights(second), weights(alone))
    assert curve(second) == curve(alone)


def test_a_stop_while_rollouts_are_sampled_saves_the_step_before(tmp_path: Path, alone: Any) -> None:
    first = trainer_of(tmp_path)
    sampler = first.rollouts.sampler
    run = sampler.run

    def stopped(coroutines: Any) -> Any:
        found = run(coroutines)
        if sampler.policy_version == 4:  # the weights after step 3: no checkpoint of an even step has them
            first.saver.flag.set("test")
            raise Stopped("now")
        return found

    sampler.run = stopped
    with pytest.raises(Stopped):
        first.resume_training()
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2, 3]
    second = trainer_of(tmp_path)
    second.resume_training()
    assert torch.equal(weights(second), weights(alone)) and curve(second) == curve(alone)


def test_a_damaged_newest_checkpoint_costs_its_steps_and_no_more(tmp_path: Path, alone: Any) -> None:
    first = trainer_of(tmp_path, stop=lambda step: step == 4)
    with pytest.raises(Stopped):
        first.resume_training()
    file = tmp_path / "checkpoints" / "step_4" / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-7])
    second = trainer_of(tmp_path)
    with pytest.warns(DamagedWarning, match=r"optimizer\.pt"):
        second.resume_training()
    assert second.sampled == [-2, 3, 4, 5]
    assert torch.equal(weights(second), weights(alone)) and curve(second) == curve(alone)


def test_a_run_that_died_after_its_last_checkpoint_trains_no_step_more(tmp_path: Path, alone: Any) -> None:
    """Five steps are no whole number of epochs: transformers' own loop would take another batch."""
    trainer_of(tmp_path).resume_training()
    again = trainer_of(tmp_path)
    again.resume_training()
    assert again.sampled == [-STEPS] and torch.equal(weights(again), weights(alone))


def test_a_checkpoint_interval_of_this_start_is_the_one_that_counts(tmp_path: Path) -> None:
    first = trainer_of(tmp_path, every=2, stop=lambda step: step == 2)
    with pytest.raises(Stopped):
        first.resume_training()
    second = trainer_of(tmp_path, every=1, stop=lambda step: step == 4)
    with pytest.raises(Stopped):
        second.resume_training()
    assert second.saver.checkpoints.steps() == [3, 4]


def test_a_step_whose_metric_does_not_apply_is_not_the_best(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    callback = next(each for each in trainer.callback_handler.callbacks if isinstance(each, _StopCallback))
    trainer.saver.score = "reward/total"
    for reward in (float("nan"), 0.5):
        callback.on_log(trainer.args, trainer.state, trainer.control, {"loss": 0.1, "reward/total": reward})
    assert trainer.saver.values == [0.5]
    trainer.saver.score = "reward/totals"
    with pytest.raises(UserError, match=r"keep_best=reward/totals is no metric of this stage; reward/total is"):
        callback.on_log(trainer.args, trainer.state, trainer.control, {"loss": 0.1, "reward/total": 0.5})


def test_a_stop_at_the_last_step_is_a_finished_training(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, stop=lambda step: step == STEPS)
    trainer.resume_training()
    assert trainer.state.global_step == STEPS


def test_a_checkpoint_is_a_model_folder(tmp_path: Path, alone: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    newest = alone.saver.checkpoints.newest()
    model = AutoModelForCausalLM.from_pretrained(newest, dtype=torch.float32)
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), weights(alone))
    assert len(AutoTokenizer.from_pretrained(newest)) == len(TOKENS.tokenizer)


def test_an_epoch_has_the_order_of_its_number_and_not_of_its_past() -> None:
    def order(epoch: int) -> list[int]:
        generator = torch.Generator()
        return list(Reseeded(RandomSampler(range(9), generator=generator), generator, 3, lambda: epoch))

    assert order(1) == order(1) != order(0)
    now, generator = [0], torch.Generator()
    sampler = Reseeded(RandomSampler(range(9), generator=generator), generator, 3, lambda: now[0])
    epochs = []
    for now[0] in range(3):
        epochs.append(list(sampler))
    assert epochs == [order(0), order(1), order(2)]


def test_whatever_a_step_waits_for_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the update runs in the optimizer and where metrics are summed, and stands during rollouts."""
    trainer, deadlines, seen = trainer_of(tmp_path), Deadlines(), {}
    trainer.saver.deadlines = deadlines
    trainer.rollouts = replace(trainer.rollouts, deadlines=deadlines)

    def noted(where: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **options: Any) -> Any:
            seen.setdefault(where, [(wait.name, wait.clock[1] is not None) for wait in deadlines.waits])
            return act(*args, **options)

        return noting

    sampler = trainer.rollouts.sampler
    monkeypatch.setattr(sampler, "run", noted("rollouts", sampler.run))
    monkeypatch.setattr(Checkpoints, "seal", noted("seal", Checkpoints.seal))
    for name in ("get_batch_samples", "_pass", "_clip_grad_norm", "_get_learning_rate", "log"):
        monkeypatch.setattr(trainer, name, noted(name, getattr(trainer, name)))
    trainer.resume_training()
    update = [("update", True)]
    assert seen == {
        **dict.fromkeys(("get_batch_samples", "_pass", "_clip_grad_norm", "_get_learning_rate", "log"), update),
        "rollouts": [("update", False), ("rollout", True)],
        "seal": [("update", False), ("collective", True)],
    }
    assert not deadlines.waits
