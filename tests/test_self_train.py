"""Self-training: what is learned from, and that a run killed anywhere ends as one that was not."""

import asyncio
import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from trainers import BUDGET, DIALECT, TOKENS, random_demonstration

from apr_train.compose import load
from apr_train.config import Config, ConfigError, SelfTrainConfig
from apr_train.deadlines import Deadlines
from apr_train.harvest import KEPT, Progress, choose, harvest, read_kept, refusal
from apr_train.identity import identity_of
from apr_train.lifecycle import StopFlag
from apr_train.self_train import (
    FREE,
    RunStages,
    SelfTrainError,
    check,
    describe,
    run_rounds,
    sft_of_round,
    summary_of,
)
from apr_train.sft import demonstration_rows, record_demonstration, trajectory_rows
from apr_train.tasks import make_task
from apr_train.tasks.base import Problem
from rewards.scored import Scored
from rewards.verdict import Verdict
from rollout.critical_path import measure
from rollout.demonstration import Block, Demonstration
from rollout.engines.memo import Memo
from rollout.engines.replay import ReplayEngine
from rollout.orchestrator import run_trajectory
from rollout.trajectory import Trajectory
from scripts.self_train import tables

PROBLEMS = [Problem(f"p{k}", f"a{k}=", "1", 1) for k in range(6)]
ALL = SelfTrainConfig(keep_per_problem=None)


def played(demo: Demonstration, problem_id: str = "p") -> Trajectory:
    engine = ReplayEngine(DIALECT.write(demo), 1000)
    return asyncio.run(run_trajectory(engine, DIALECT, problem_id, TOKENS.prompt("a="), BUDGET))


def scored(text: str, verdict: Verdict = "correct", flaw: str | None = None) -> Scored:
    trajectory = played(Demonstration((text,), "1"))
    return Scored(trajectory, measure(trajectory), verdict, flaw)


FORKED = played(Demonstration((Block((("a", "1" * 20), ("b", "2" * 20))),), "1"))
WIDE = Scored(FORKED, measure(FORKED), "correct")


# -- what is learned from ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "limits", "reason"),
    [
        (scored("ab"), ALL, None),
        (scored("ab", "wrong"), ALL, "wrong"),
        (scored("ab", "unparsable"), ALL, "unparsable"),
        (scored("ab", "timeout"), ALL, "timeout"),
        (scored("ab", flaw="a stray tag"), ALL, "malformed"),
        (scored("ab", "wrong", "a stray tag"), ALL, "wrong"),
        (scored("ab"), replace(ALL, max_critical=5), "max_critical"),
        (scored("ab"), replace(ALL, max_critical=6), None),
        (scored("ab"), replace(ALL, min_eta=0.01), "min_eta"),
        (scored("ab"), replace(ALL, min_eta=0.0), None),
        (WIDE, replace(ALL, min_eta=0.2), None),
        (WIDE, replace(ALL, min_eta=0.9), "min_eta"),
    ],
)
def test_only_right_and_strictly_well_formed_trajectories_within_the_limits_are_learned_from(
    sample: Scored, limits: SelfTrainConfig, reason: str | None
) -> None:
    assert sample.lengths.l_critical == 6 or sample is WIDE  # <think>ab</think>1<eos>
    assert refusal(sample, limits) == reason


def test_of_several_right_ones_the_shortest_stay_in_the_order_they_were_sampled() -> None:
    samples = [scored(text) for text in ("aaaa", "bb", "aa", "bb", "ccc", "b")]
    kept, reasons = choose(samples, replace(ALL, keep_per_problem=3))
    assert kept == [samples[1], samples[2], samples[5]]
    assert reasons == {"repeated": 1, "keep_per_problem": 2}
    assert choose(samples, replace(ALL, keep_per_problem=2))[0] == [samples[1], samples[5]]
    assert len(choose(samples, ALL)[0]) == 5


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), keep=st.none() | st.integers(1, 3), size=st.integers(1, 7))
def test_every_sample_is_kept_or_has_one_reason_and_batches_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, keep: int | None, size: int
) -> None:
    config = SelfTrainConfig(samples_per_problem=3, keep_per_problem=keep, batch_problems=size, max_critical=30)
    folder, whole = tmp_path_factory.mktemp("harvest"), tmp_path_factory.mktemp("whole")
    done = harvest(Stages(folder).collect, PROBLEMS, config, number=1, seed=seed, folder=folder)
    assert done.sampled == 18 == done.kept + sum(done.rejected.values())
    kept = read_kept(folder)
    assert len(kept) == done.kept
    assert all(measure(trajectory).l_critical <= 30 for trajectory in kept)
    assert done.l_critical == sum(measure(trajectory).l_critical for trajectory in kept)
    assert done.rejected.get("malformed", 0) == sum(done.flaws.values())
    harvest(Stages(whole).collect, PROBLEMS, replace(config, batch_problems=99), number=1, seed=seed, folder=whole)
    assert (whole / KEPT).read_bytes() == (folder / KEPT).read_bytes()


def test_what_was_kept_is_trained_as_the_calls_that_a_demonstration_would_be() -> None:
    task = make_task("arithmetic", {"parts_max": 3, "steps_min": 3, "steps_max": 4})
    problems = task.problems("train", 6, 0)
    shown = [
        record_demonstration(task, p, "parallel" if (p.parts or 1) > 1 else "sequential", DIALECT, TOKENS, BUDGET, 1000)
        for p in problems
    ]
    rows = demonstration_rows(task, problems, DIALECT, TOKENS, BUDGET, 1000, parallel_share=1.0, seed=0)
    assert list(rows) == list(trajectory_rows(shown))
    assert [len(calls) for calls in rows["rows"]] == [len(trajectory.calls) for trajectory in shown]


# -- rounds ------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


class Stages:
    """A run without models: samples are drawn from (weights, seed, i), "training" hashes what it is given."""

    writes = True

    def __init__(self, folder: Path, kill_at: int | None = None) -> None:
        self.folder, self.left, self.log, self.seeds = folder, kill_at, list[str](), list[int]()
        self.weights = ""
        start = folder / "start"
        start.mkdir(parents=True, exist_ok=True)
        (start / "weights").write_text("start")

    def step(self, name: str) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed
        self.log.append(name)

    def warm_start(self) -> None:
        self.step("warm start")
        (self.folder / "sft").mkdir(exist_ok=True)
        (self.folder / "sft/weights").write_text("sft")

    def use(self, model: Path) -> None:
        self.step(f"use {model.relative_to(self.folder)}")
        self.weights = (model / "weights").read_text()

    def collect(self, problems: Sequence[Problem], seed: int, first: int) -> list[Scored]:
        self.step(f"collect {first}")
        self.seeds.append(seed)
        return [self.sample(problem, f"{self.weights}/{seed}/{first + k}") for k, problem in enumerate(problems)]

    def sample(self, problem: Problem, stream: str) -> Scored:
        rng = random.Random(stream)
        trajectory = played(random_demonstration(rng), problem.id)
        trajectory = replace(trajectory, policy_version=len(self.log))  # differs after a restart
        verdict: Verdict = rng.choice(["correct", "correct", "correct", "correct", "wrong", "error"])
        flaw = rng.choice([None, None, None, "a stray tag"])
        return Scored(trajectory, measure(trajectory), verdict, flaw)

    def train(self, source: Path, kept: Sequence[Trajectory], folder: Path) -> None:
        self.step(f"train {source.relative_to(self.folder)}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_text("half")  # a kill in the middle leaves a folder of no use
        self.step("trained")
        digest = hashlib.sha256((source / "weights").read_bytes())
        for trajectory in kept:
            digest.update(repr([segment.ids for segment in trajectory.segments]).encode())
        (folder / "weights").write_text(digest.hexdigest())

    def evaluate(self, model: Path) -> dict[str, Any]:
        self.step(f"evaluate {model.relative_to(self.folder)}")
        return {"accuracy": int(hashlib.sha256((model / "weights").read_bytes()).hexdigest()[:4], 16) / 2**16}

    def wait(self) -> None:
        pass


def config_of(folder: Path, **changes: Any) -> Config:
    config = Config()
    config.output_dir, config.sft.steps = str(folder), 5
    config.self_train = SelfTrainConfig(rounds=2, samples_per_problem=2, batch_problems=2)
    for key, value in changes.items():
        setattr(config.self_train, key, value)
    return config


def complete(folder: Path, stages: Stages, **changes: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The summary and every file of a run that ends."""
    config = config_of(folder, **changes)
    rounds = run_rounds(config, stages, PROBLEMS, folder, lambda line: None)
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return summary_of(config, rounds), files


def test_a_round_samples_with_the_model_before_it_and_trains_the_start(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "start")
    complete(tmp_path / "start", stages)
    collects = ["collect 0", "collect 4", "collect 8"]
    first, second = ([s for c in collects for s in (f"use {m}", c)] for m in ("sft", "round1/model"))
    assert stages.log == [
        *("warm start", "evaluate sft", *first, "train start", "trained", "evaluate round1/model"),
        *(*second, "train start", "trained", "evaluate round2/model"),
    ]
    last = Stages(tmp_path / "last")
    complete(tmp_path / "last", last, source="last")
    assert [line for line in last.log if line.startswith("train ")] == ["train sft", "train round1/model"]


def test_a_round_draws_other_samples_than_the_rounds_and_the_runs_beside_it(tmp_path: Path) -> None:
    seeds: list[int] = []
    for seed in (0, 1):
        stages, config = Stages(tmp_path / str(seed)), config_of(tmp_path / str(seed))
        config.seed = seed
        run_rounds(config, stages, PROBLEMS, tmp_path / str(seed), lambda line: None)
        assert stages.seeds == [stages.seeds[0]] * 3 + [stages.seeds[3]] * 3
        seeds += set(stages.seeds)
    assert len(set(seeds)) == 4


def test_a_kill_while_it_evaluates_costs_no_second_training(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        complete(tmp_path, Stages(tmp_path, 10))
    again = Stages(tmp_path)
    complete(tmp_path, again)
    assert again.log[0] == "evaluate round1/model"


STEPS = 20


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run that nobody kills ends as, by what it trains."""
    ends: dict[str, Any] = {}
    for source in ("start", "last"):
        stages = Stages(folder := tmp_path_factory.mktemp(source))
        ends[source] = complete(folder, stages, source=source)
        assert len(stages.log) == STEPS
    return ends


@pytest.mark.parametrize("source", ["start", "last"])
@pytest.mark.parametrize("kill_at", range(STEPS))
def test_a_run_killed_at_any_step_goes_on_to_the_same_end(
    tmp_path: Path, uninterrupted: dict[str, Any], kill_at: int, source: str
) -> None:
    expected = uninterrupted[source]
    with pytest.raises(Killed):
        complete(tmp_path / "killed", Stages(tmp_path / "killed", kill_at), source=source)
    again = Stages(tmp_path / "killed")
    assert complete(tmp_path / "killed", again, source=source) == expected
    redone = len(again.log) + kill_at - STEPS
    assert redone <= 2  # the weights that were loaded, the training that was cut off


def test_a_batch_that_was_written_and_not_yet_counted_is_sampled_again(tmp_path: Path) -> None:
    expected = complete(tmp_path / "whole", Stages(tmp_path / "whole"))
    with pytest.raises(Killed):
        complete(tmp_path / "killed", Stages(tmp_path / "killed", 5))
    assert Progress.load(tmp_path / "killed/round1").batches == 1
    with (tmp_path / "killed/round1" / KEPT).open("a") as file:
        file.write('{"step": 1, "half a')
    assert complete(tmp_path / "killed", Stages(tmp_path / "killed")) == expected


def test_a_finished_run_does_nothing_more_and_takes_further_rounds(tmp_path: Path) -> None:
    whole = complete(tmp_path / "whole", Stages(tmp_path / "whole"), rounds=3)
    complete(tmp_path / "grown", Stages(tmp_path / "grown"))
    again = Stages(tmp_path / "grown")
    complete(tmp_path / "grown", again)
    assert again.log == []
    assert complete(tmp_path / "grown", again, rounds=3) == whole
    assert again.log[0] == "use round2/model"


def test_a_run_without_warm_start_samples_with_its_start(tmp_path: Path) -> None:
    stages, config = Stages(tmp_path), config_of(tmp_path, rounds=1)
    config.sft.steps = 0
    run_rounds(config, stages, PROBLEMS, tmp_path, lambda line: None)
    assert stages.log[:2] == ["evaluate start", "use start"]


def test_a_round_that_keeps_nothing_names_the_reasons_and_trains_nothing(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    with pytest.raises(SelfTrainError, match=r"kept none of 12 trajectories \(.*max_critical \d+"):
        complete(tmp_path, stages, max_critical=1)
    assert "train start" not in stages.log


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
def test_ranks_sample_their_shares_of_what_one_would(
    tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect(problems: Sequence[Problem], temperature: float, seed: int, first: int) -> list[Any]:
        return [(problem.id, temperature, seed, first + k) for k, problem in enumerate(problems)]

    config = load(["rollout.temperature=0.5"])
    everyone: list[Any] = []
    monkeypatch.setattr("apr_train.self_train.gather_object", lambda own: own)
    monkeypatch.setattr("apr_train.revival.gather_object", lambda own: own)
    sampler = SimpleNamespace(policy_version=0, load_weights=list)
    rollouts = SimpleNamespace(collect=collect, sampler=sampler, memo=Memo(), deadlines=Deadlines(), stop=None)
    for rank in range(ranks):
        world = SimpleNamespace(num_processes=ranks, process_index=rank, is_main_process=not rank)
        parts: Any = SimpleNamespace(world=world, rollouts=rollouts, config=config, flag=StopFlag())
        stages = RunStages(parts)
        assert stages.writes == (rank == 0)
        stages.use(tmp_path)
        everyone += stages.collect(PROBLEMS, seed=3, first=10)
    assert everyone == [(f"p{k}", 0.5, 3, 10 + k) for k in range(6)]


def test_more_rounds_are_the_same_run_and_other_samples_are_not(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    first = identity_of(config, [PROBLEMS], 1, FREE)
    config.self_train.rounds, config.logger.wandb = 9, "disabled"
    assert identity_of(config, [PROBLEMS], 1, FREE) == first
    config.self_train.samples_per_problem = 77
    assert identity_of(config, [PROBLEMS], 1, FREE) != first


# -- configuration and what is shown -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("self_train.source=latest", r"did you mean last\?"),
        ("self_train.rounds=0", "must be at least 1"),
        ("self_train.keep_per_problem=0", "must be at least 1"),
        ("self_train.min_eta=1.0", r"must be in \[0, 1\)"),
        ("self_train.min_eta=-0.1", r"must be in \[0, 1\)"),
        ("self_train.learning_rate=0", "must be above 0"),
        ("self_train.batch_problem=3", r"did you mean self_train\.batch_problems\?"),
    ],
)
def test_a_wrong_setting_is_one_line(override: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load([override])


def test_a_round_trains_one_epoch_or_as_long_as_it_is_told() -> None:
    def sft(*overrides: str) -> tuple[int, int, float]:
        chosen = ("sft.problems_per_step=24", "sft.warmup_steps=30", "sft.learning_rate=0.1", *overrides)
        settings = sft_of_round(load(chosen), kept=991)
        return settings.steps, settings.warmup_steps, settings.learning_rate

    assert sft() == (42, 5, 0.1)
    assert sft("self_train.steps=1000", "self_train.learning_rate=0.2") == (1000, 30, 0.2)


def test_what_samples_but_cannot_train_is_refused() -> None:
    config = load([])
    config.strategy.name = "hogwild"
    with pytest.raises(ConfigError, match="group_think"):
        check(config)
    with pytest.raises(ConfigError, match="multiple of 5 ranks"):
        check(load([]), ranks=5)
    check(load([]), ranks=2)


def test_the_plan_says_what_every_shipped_option_does() -> None:
    shown = {name: describe(load([f"self_train={name}"])) for name in ("rounds", "threadweaver", "npr")}
    assert shown["rounds"].startswith("3 rounds of 4096 problems x 4 samples")
    assert shown["npr"].startswith("1 round of 4096 problems x 8 samples")
    assert "at most 1 a problem" in shown["threadweaver"]
    assert "eta at least 0.1" in describe(load(["self_train.min_eta=0.1", "self_train.keep_per_problem=null"]))


def test_the_tables_fit_80_columns_and_show_every_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary, _ = complete(tmp_path, Stages(tmp_path), rounds=9)
    for table in tables({**summary, "name": "a_long_name_of_a_run_" * 4}):
        Console(width=80).print(table)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert all(reason in shown for each in summary["rounds"][-5:] for reason in each["rejected"])
