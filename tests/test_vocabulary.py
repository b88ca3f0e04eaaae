"""One vocabulary: what a real run logs is what it says, and the dashboards and the docs hold the same."""

import ast
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from apr_train import logger, metrics_page
from apr_train.compose import load
from apr_train.config import Config
from apr_train.logger import LogCallback, MetricsLog
from apr_train.metrics import group_std, step_metrics
from apr_train.run import run
from apr_train.stored import read_recorded
from apr_train.vocabulary import AXES, DROPPED, METRICS, RENAMED, SECTIONS, find, kind_of, ours, reproducible
from rewards.verdict import Verdict
from rollout.trajectory import Outcome

ALWAYS = [metric for metric in METRICS if not metric.only]


def tiny_config(folder: Path) -> Config:
    """Three updates of SFT, two of GRPO, two evaluations, on the torch engine: a few seconds."""
    config = Config()
    config.name, config.output_dir, config.seed = "tiny", str(folder), 5
    config.model.hidden_size, config.model.layers, config.model.intermediate_size = 32, 1, 32
    config.model.heads = config.model.kv_heads = 2
    config.data.task, config.data.train_problems = "arithmetic", 16
    config.data.options = {"parts_max": 2, "steps_min": 2, "steps_max": 2}
    config.sft.steps, config.sft.problems_per_step, config.sft.warmup_steps = 3, 4, 1
    config.reward.terms = {"outcome": {}, "acceleration": {"rho": 0.5, "cap": 0.2, "gate": ["correct"]}}
    config.algorithm.steps, config.algorithm.prompts_per_step, config.algorithm.group_size = 2, 2, 2
    config.algorithm.micro_batches = 2
    config.rollout.engine, config.rollout.max_response_tokens = "torch", 120
    config.logger.progress, config.logger.tensorboard, config.checkpoint.every = False, True, 0
    config.logger.rollouts_every = 1
    config.eval.problems = 2
    return config


class FakeRun:
    """Stands in for a W&B run and keeps what it was told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.axes: dict[str, str] = {}

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def finish(self) -> None: ...


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, lines of metrics.jsonl, what W&B was told) of a whole run."""
    folder, told = tmp_path_factory.mktemp("real") / "tiny", FakeRun()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger.wandb, "init", lambda **_: told)
        run(tiny_config(folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return folder, lines, told


# -- what is logged ----------------------------------------------------------------------------------------------------


def test_every_logged_key_is_in_the_vocabulary_under_its_kind(real: Any) -> None:
    for line in real[1]:
        for name in line.keys() - {"stage", "step"}:
            metric = find(name)
            assert metric is not None and metric.kind == kind_of(line["stage"]), name


def test_every_entry_without_a_condition_is_in_every_line_of_its_kind(real: Any) -> None:
    assert {line["stage"] for line in real[1]} == {"sft", "sft_heldout", "rl", "rl_heldout"}
    for line in real[1]:
        own = [metric for metric in ALWAYS if metric.kind == kind_of(line["stage"])]
        assert [metric.name for metric in own if not any(find(name) is metric for name in line)] == []


def test_entries_with_a_condition_are_logged_where_it_holds(real: Any) -> None:
    lines = [line for line in real[1] if line["stage"] == "rl"]
    for name in ("loss/clipped", "loss/clipped_low", "loss/clipped_high", "optim/grad_norm", "perf/packing_ratio"):
        assert all(name in line for line in lines), name


def test_wandb_gets_what_the_file_gets_and_the_step_under_one_name(real: Any) -> None:
    _, lines, told = real
    expected = [
        {AXES[kind_of(line["stage"])]: line["step"]} | {k: v for k, v in line.items() if k not in ("stage", "step")}
        for line in lines
    ]
    assert told.rows == json.loads(json.dumps(expected))
    assert told.axes == {"*": "optim/step", "sft/*": "sft/step", "eval/*": "eval/step"}


NAMED = re.compile(rf"({'|'.join(sorted({metric.section for metric in METRICS}))})(/[a-z0-9_]+)*/[a-z0-9_]*[a-z0-9]")


def test_no_code_asks_for_a_metric_that_nobody_logs() -> None:
    """Curves, alarms and panels name metrics as text: a renamed one would leave them empty without a word."""
    asked = {
        node.value
        for folder in ("apr_train", "rollout", "scripts")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED.fullmatch(node.value)
    }
    assert {"reward/total", "tree/l_critical", "gap/logprob_mean_abs"} <= asked
    assert {name for name in asked - set(AXES.values()) if find(name) is None} == set()


def test_the_gap_of_the_recorded_tokens_is_the_gap_that_is_logged(real: Any) -> None:
    folder, lines, _ = real
    logged = {line["step"]: line["gap/logprob_max_abs"] for line in lines if line["stage"] == "rl"}
    worst = dict.fromkeys(logged, 0.0)
    for one in read_recorded([folder / "rollouts-rank0.jsonl"]):
        for call, told in zip(one.trajectory.calls, one.trainer_logprobs or (), strict=True):
            sampler = one.trajectory.segments[call.sampled].logprobs
            assert told is not None and sampler is not None
            gaps = [abs(ours - theirs) for ours, theirs in zip(told, sampler, strict=True)]
            worst[one.step] = max(worst[one.step], *gaps)
    assert worst == pytest.approx(logged, abs=1e-8) and max(worst.values()) > 0


def test_shares_sum_to_one(real: Any) -> None:
    lines = [line for line in real[1] if line["stage"] == "rl"]
    assert len(lines) == 2
    for line in lines:
        for section, names in (("stop", get_args(Outcome)), ("verify", get_args(Verdict))):
            shares = {name: value for name, value in line.items() if name.startswith(f"{section}/")}
            assert shares.keys() == {f"{section}/{name}" for name in names}
            assert sum(shares.values()) == pytest.approx(1.0)


def test_the_parts_of_a_step_take_no_longer_than_the_step(real: Any) -> None:
    for line in (line for line in real[1] if line["stage"] == "rl"):
        assert 0 < line["time/verify"] < line["time/rollout"]
        assert line["time/sync"] + line["time/rollout"] + line["time/update"] < line["time/step"]
        assert line["gap/logprob_max_abs"] >= line["gap/logprob_mean_abs"] > 0
        assert line["perf/peak_memory_gib"] > 0.1


def test_a_key_that_nobody_explains_is_said_once_and_not_logged(tmp_path: Path) -> None:
    told, said = FakeRun(), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger.wandb, "init", lambda **_: told)
        log = MetricsLog(load(["logger.progress=false"]), tmp_path, is_main=True)
    log.say = said.append  # type: ignore[method-assign]
    callback, state = LogCallback(log, "sft"), SimpleNamespace(global_step=1, max_steps=2)
    for _ in range(2):
        callback.on_log(None, state, None, {"loss": 1.0, "epoch": 0.5, "aux_loss": 3.0})  # type: ignore[arg-type]
    log.close()
    assert len(said) == 1 and "aux_loss" in said[0]
    assert [row.keys() for row in told.rows] == [{"sft/step", "sft/loss", "sft/step_seconds"}] * 2


# -- the table ---------------------------------------------------------------------------------------------------------


def test_names_are_unique_sorted_by_section_and_complete() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    sections = [metric.section for metric in METRICS]
    assert list(dict.fromkeys(sections)) == list(SECTIONS) and sections == sorted(sections, key=list(SECTIONS).index)
    for metric in METRICS:
        assert metric.unit and metric.reduction and metric.meaning.endswith(".") and "|" not in metric.unit
    assert {f"stop/{name}" for name in get_args(Outcome)} == {name for name in names if name.startswith("stop/")}
    assert {f"verify/{name}" for name in get_args(Verdict)} == {name for name in names if name.startswith("verify/")}


@given(st.text(min_size=1).filter(lambda name: "\n" not in name))
def test_a_term_of_any_name_hides_no_other_metric(name: str) -> None:
    assert find(f"reward/term/{name}") is find("reward/term/outcome")
    assert find(f"reward/gate/{name}") is find("reward/gate/outcome")


def test_what_trainers_call_it_is_renamed_to_entries_or_dropped() -> None:
    for kind, names in RENAMED.items():
        assert all((metric := find(name)) and metric.kind == kind for name in names.values())
    assert ours("rl", {"loss": 1.0, "tree/eta": 0.5, **dict.fromkeys(DROPPED, 0.0)}) == {
        "loss/policy": 1.0,
        "tree/eta": 0.5,
    }


def test_what_a_seed_decides_is_what_is_compared() -> None:
    line = {"stage": "rl", "step": 1, "tree/eta": 0.5, "perf/packing_ratio": 2.0}
    assert reproducible(line | {"time/step": 1.0, "perf/tokens_per_second": 9.0, "sync/engine_restarts": 1.0}) == line


# -- figures by hand ---------------------------------------------------------------------------------------------------


def test_figures_of_a_step_by_hand() -> None:
    names = ["advantage/mean_abs", "verify/correct", "tree/l_critical", "tree/l_total", "reward/total", "tree/threads"]
    nan = math.nan
    table = torch.tensor(
        [
            [0.0, 1.0, 10.0, 10.0, 1.0, nan],  # a group that is all right
            [0.0, 1.0, 30.0, 40.0, 1.0, 3.0],
            [0.5, 1.0, 20.0, 20.0, 1.0, nan],  # one that is half right
            [0.5, 0.0, 20.0, 20.0, 0.0, nan],
            [0.0, 0.0, 5.0, 90.0, nan, nan],  # one that nobody judged
            [0.0, 0.0, 5.0, 6.0, nan, nan],
        ]
    )
    found = step_metrics(names, table, group_size=2)
    assert found["tree/threads"] == 3.0 and found["reward/total"] == 0.75 and found["tree/l_critical"] == 15.0
    assert (found["tree/l_critical_max"], found["tree/l_total_max"]) == (30.0, 90.0)
    assert found["group/without_signal"] == pytest.approx(2 / 3)
    assert found["group/all_correct"] == pytest.approx(1 / 3) and found["group/none_correct"] == pytest.approx(1 / 3)
    assert found["group/reward_std"] == pytest.approx(0.25)  # (0 + 0.5) / 2: the third has none
    assert (found["advantage/mean_abs"], found["advantage/max_abs"]) == (pytest.approx(1 / 6), 0.5)


def test_nothing_judged_has_no_spread() -> None:
    assert math.isnan(group_std(torch.full((2, 3), math.nan)))


# -- docs --------------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_table_says() -> None:
    assert (ROOT / "docs/metrics.md").read_text() == metrics_page.page(), "python -m apr_train.metrics_page"


def test_every_metric_that_a_text_names_exists() -> None:
    sections = "|".join(SECTIONS)
    for file in (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("*.md")):
        for name in re.findall(rf"`((?:{sections})/[a-z_/<>]+)`", file.read_text()):
            assert find(name) or name in AXES.values() or (ROOT / name).exists() or name.endswith("/"), (
                file.name,
                name,
            )
