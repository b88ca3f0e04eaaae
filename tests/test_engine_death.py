"""An engine that dies in the middle costs time and nothing else: same tokens, same weights, all ranks together."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dying_engines import BUDGET, DIALECT, PARALLEL, DyingSampler, forking_trainer
from helpers import Judge
from safetensors.torch import save_file
from served import Served
from torch import Tensor
from trainers import TOKENS

from apr_train import revival
from apr_train.checkpoint import read_json
from apr_train.config import Config
from apr_train.deadlines import Deadlines
from apr_train.evaluation.heldout import evaluate_folder, seal
from apr_train.lifecycle import Halted, Stopped
from apr_train.revival import EngineLost, Revival
from apr_train.rollouts import Rollouts
from apr_train.self_train import RunStages
from apr_train.tasks.base import Problem
from rollout.engine import EngineError
from rollout.trajectory import Trajectory

PROBLEMS = [Problem(f"p{k}", f"a{k}=", "1") for k in range(5)]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revival, "PAUSE", 0.01)


VERDICT = Judge(lambda response, reference: "wrong")


def rollouts_of(sampler: Any, **options: Any) -> Rollouts:
    return Rollouts(sampler, DIALECT, PARALLEL, VERDICT, BUDGET, **options)


def weights(value: float = 1.0) -> Iterator[tuple[str, Tensor]]:
    yield "a", torch.tensor([value])
    yield "b", torch.tensor([value, 2.0])


def sampled(rollouts: Rollouts, seed: int = 3) -> list[Trajectory]:
    def collect() -> list[Trajectory]:
        found = rollouts.collect(PROBLEMS, temperature=1.0, seed=seed)
        return [each.trajectory for each in found]

    return Revival(rollouts).run(weights, collect)


CALM = DyingSampler()
UNDISTURBED = sampled(rollouts_of(CALM))


def test_the_rollouts_of_this_file_fork_and_depend_on_seeds_and_weights() -> None:
    assert all(len(trajectory.calls) > 3 for trajectory in UNDISTURBED)
    assert len({trajectory.segments for trajectory in UNDISTURBED}) == len(PROBLEMS)
    other = Revival(rollouts_of(DyingSampler())).run(
        lambda: weights(5.0), lambda: rollouts_of(DyingSampler()).collect(PROBLEMS, temperature=1.0, seed=3)
    )
    assert [each.trajectory for each in other] != UNDISTURBED


@pytest.mark.parametrize("deaths", [[0], [7], [CALM.answered - 1], [4, 9, 15]])
def test_an_engine_that_dies_samples_the_same_tokens_and_asks_only_for_what_was_not_answered(deaths: list[int]) -> None:
    sampler = DyingSampler(deaths)
    assert sampled(rollouts_of(sampler)) == UNDISTURBED
    assert (sampler.revived, sampler.loads) == (len(deaths), 1 + len(deaths))
    assert sampler.answered == CALM.answered  # nothing that was answered is asked again


def test_weights_that_were_loaded_again_are_no_new_version() -> None:
    sampler = DyingSampler([4, 9])
    rollouts = rollouts_of(sampler)
    sampler.policy_version = 7
    assert {trajectory.policy_version for trajectory in sampled(rollouts)} == {8}
    assert sampler.policy_version == 8
    sampled(rollouts)
    assert sampler.policy_version == 9


def test_what_one_policy_answered_is_not_taken_for_the_next_one() -> None:
    rollouts = rollouts_of(DyingSampler([5]))
    sampled(rollouts)
    assert len(rollouts.memo) == 0
    again = rollouts.collect(PROBLEMS, temperature=1.0, seed=3)  # outside of a revival nothing is remembered
    assert len(rollouts.memo) == 0 and [each.trajectory for each in again] == UNDISTURBED


def test_an_engine_that_dies_while_it_takes_the_weights_lets_the_others_gather_theirs() -> None:
    sampler, asked = DyingSampler(), list[str]()
    sampler.dead = True

    def counted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights():
            asked.append(name)
            yield name, tensor

    rollouts = rollouts_of(sampler)
    found = Revival(rollouts).run(counted, lambda: rollouts.collect(PROBLEMS, temperature=1.0, seed=3))
    assert [each.trajectory for each in found] == UNDISTURBED
    assert asked == ["a", "b"] * 2  # under ZeRO-3 every rank must go through all of them, each time


def test_an_engine_that_comes_back_late_is_waited_for_until_its_deadline() -> None:
    sampler = DyingSampler([4], absent=3)
    assert sampled(rollouts_of(sampler)) == UNDISTURBED
    gone, told = DyingSampler([4], absent=10**6), list[str]()
    with pytest.raises(EngineLost, match="is not back, rank 0: no vLLM server: start one: start the same") as caught:
        sampled(rollouts_of(gone, deadlines=Deadlines({"engine_start": 0.5}, told.append)))
    assert not told and "\n" not in str(caught.value)  # the deadline itself would end the run without saving
    assert isinstance(caught.value, Halted)


def test_a_stop_is_heard_while_an_engine_is_waited_for() -> None:
    sampler = DyingSampler([4], absent=10**6)
    with pytest.raises(Stopped):
        sampled(rollouts_of(sampler, stop=lambda: sampler.absent < 10**6 - 2))


@pytest.mark.parametrize("restarts", [0, 2])
def test_an_engine_that_dies_again_and_again_ends_the_stage_by_name(restarts: int) -> None:
    sampler = DyingSampler([3, 5, 7, 9])
    with pytest.raises(EngineLost, match=rf"rank 0: vLLM failed.* after {restarts} restarts .*rollout\.engine_rest"):
        sampled(rollouts_of(sampler, restarts=restarts))
    assert sampler.revived == restarts


def test_restarts_count_over_the_steps_of_a_stage() -> None:
    rollouts = rollouts_of(DyingSampler([3, 40]), restarts=1)
    stage = Revival(rollouts)

    def collect() -> Any:
        return rollouts.collect(PROBLEMS, temperature=1.0, seed=3)

    stage.run(weights, collect)
    with pytest.raises(EngineLost):
        stage.run(weights, collect)


def test_a_refused_call_is_no_death_and_ends_all_ranks_alike() -> None:
    sampler = DyingSampler()

    def refuse() -> None:
        raise EngineError("8 prompt tokens do not fit")

    with pytest.raises(EngineLost, match=r"^8 prompt tokens do not fit$"):
        Revival(rollouts_of(sampler)).run(weights, refuse)
    assert not sampler.revived


def test_an_error_that_is_none_of_an_engine_is_not_survived() -> None:
    def fail() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        Revival(rollouts_of(DyingSampler())).run(weights, fail)


# -- training ----------------------------------------------------------------------------------------------------------


def trained(folder: Path, deaths: list[int], restarts: int = 3) -> tuple[Any, DyingSampler]:
    sampler = DyingSampler(deaths, size=len(TOKENS.tokenizer))
    return forking_trainer(folder, sampler, restarts), sampler


def test_a_training_run_does_not_show_that_its_engine_died(tmp_path: Path) -> None:
    calm, quiet = trained(tmp_path / "calm", [])
    calm.resume_training()
    shaken, sampler = trained(tmp_path / "shaken", [5, quiet.answered // 2, quiet.answered - 2])
    shaken.resume_training()
    assert sampler.revived == 3 and shaken.seen == calm.seen
    assert sampler.policy_version == quiet.policy_version == 2
    for one, other in zip(calm.model.parameters(), shaken.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_whose_engine_is_lost_has_saved_what_was_trained(tmp_path: Path) -> None:
    calm, quiet = trained(tmp_path / "calm", [])
    calm.resume_training()
    trainer, _ = trained(tmp_path / "lost", [quiet.answered - 2], restarts=0)
    with pytest.raises(EngineLost):
        trainer.resume_training()
    saved = tmp_path / "lost" / "checkpoints"
    assert read_json(saved / "step_1" / "trainer_state.json")["global_step"] == 1
    again, _ = trained(tmp_path / "lost", [])
    again.resume_training()
    assert again.seen == calm.seen[1:]


# -- held-out figures and self-training --------------------------------------------------------------------------------


def parts_of(folder: Path, deaths: list[int]) -> Any:
    folder.mkdir()
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    world = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True)
    rollouts, heldout = rollouts_of(DyingSampler(deaths)), SimpleNamespace(heldout=PROBLEMS)
    return SimpleNamespace(world=world, rollouts=rollouts, problems=heldout, config=Config())


def test_held_out_figures_do_not_show_that_the_engine_died(tmp_path: Path) -> None:
    calm, shaken = parts_of(tmp_path / "calm", []), parts_of(tmp_path / "shaken", [3, 11])
    assert evaluate_folder(calm, tmp_path / "calm") == evaluate_folder(shaken, tmp_path / "shaken")
    for name in ("calm", "shaken"):
        seal(tmp_path / name, is_main=True)
    assert (tmp_path / "calm/heldout.jsonl").read_bytes() == (tmp_path / "shaken/heldout.jsonl").read_bytes()
    assert shaken.rollouts.sampler.revived == 2 and shaken.rollouts.sampler.policy_version == 1


def test_self_training_does_not_show_that_the_engine_died_and_counts_over_a_round(tmp_path: Path) -> None:
    calm, shaken = parts_of(tmp_path / "calm", []), parts_of(tmp_path / "shaken", [3, CALM.answered + 2])
    found: list[Any] = []
    for parts, name in ((calm, "calm"), (shaken, "shaken")):
        stages = RunStages(parts)
        for batch in range(2):
            stages.use(tmp_path / name)  # for each batch
            found.append(stages.collect(PROBLEMS, seed=3, first=10 * batch))
        assert stages.revival is not None and stages.revival.used == (2 if name == "shaken" else 0)
    assert found[:2] == found[2:] and found[0] != found[1]


# -- several ranks -----------------------------------------------------------------------------------------------------


def two_ranks(folder: Path, stage: str, deaths: str, restarts: str = "3") -> Any:
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).parent / "dying_engines.py"), stage, str(folder / "told"), deaths, restarts]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"told.{rank}").read_text()) for rank in range(2)]


@pytest.mark.parametrize("stage", ["none", pytest.param("3", marks=pytest.mark.slow)])
def test_one_ranks_engine_dies_and_no_rank_hangs_or_samples_otherwise(tmp_path: Path, stage: str) -> None:
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    done = two_ranks(calm, stage, "none")
    assert done.returncode == 0, done.stderr[-3000:]
    done = two_ranks(shaken, stage, f"5,{told(calm)[1]['answered'] - 2}")  # one in each step
    assert done.returncode == 0, done.stderr[-3000:]
    for quiet, other in zip(told(calm), told(shaken), strict=True):
        assert (quiet["revived"], other["revived"]) == (0, 2)  # all engines are built together
        for same in ("seen", "weights", "version", "answered"):
            assert quiet[same] == other[same]


@pytest.mark.parametrize("count", [1, 2])
def test_two_ranks_ask_one_server_or_two_and_a_death_of_one_costs_no_token(tmp_path: Path, count: int) -> None:
    found: list[Any] = []
    deaths: dict[int, Any] = {}
    for name in ("calm", "shaken"):
        servers = [Served(deaths if number == count - 1 else {}, size=len(TOKENS.tokenizer)) for number in range(count)]
        done = two_ranks(tmp_path / name, "none", ",".join(each.url for each in servers))
        assert done.returncode == 0, done.stderr[-3000:]
        found.append((told(tmp_path / name), [each.loaded for each in servers]))
        for each in servers:
            each.close()
        calls = servers[-1].calls  # in two steps, alike; at most twice as many in one with a death
        deaths = {3: "died", calls + 1: "restarted"}
    (calm, loaded), (shaken, again) = found
    assert [each["restarts"] for each in calm + shaken] == [0, 0, 2, 2]
    for quiet, other in zip(calm, shaken, strict=True):
        assert (quiet["seen"], quiet["version"]) == (other["seen"], other["version"])
    for each, more in zip(loaded, again, strict=True):
        assert len(each) == 2 and len(more) == 4  # once a step, and after each death: by one rank, to all servers
        assert each == loaded[0] and more == again[0] and sorted(set(more)) == sorted(each)


@pytest.mark.slow
def test_all_ranks_end_and_save_when_one_ranks_engine_is_lost(tmp_path: Path) -> None:
    done = two_ranks(tmp_path / "lost", "none", "none", "0")
    assert done.returncode == 0
    calls = told(tmp_path / "lost")[1]["answered"]
    done = two_ranks(tmp_path / "again", "none", str(calls - 1), "0")
    assert done.returncode != 0
    for rank in (0, 1):
        assert f"error: rank {rank}: the sampler's engine died, rank 1: vLLM failed" in done.stderr
    assert (tmp_path / "again" / "checkpoints" / "step_1" / "manifest.json").is_file()
