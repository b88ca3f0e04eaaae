"""Dashboards: TensorBoard shows what metrics.jsonl holds and no step twice, W&B's workspace holds the vocabulary."""

import json
import math
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_vocabulary import FakeRun, tiny_config

from apr_train import logger, logger_dashboard
from apr_train.compose import load
from apr_train.identity import forget
from apr_train.logger import MetricsLog
from apr_train.run import run
from apr_train.vocabulary import METRICS, SECTIONS
from scripts import make_dashboard

# -- TensorBoard -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger.wandb, "init", lambda **_: FakeRun())


def shown(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    """(stage, step) -> {metric: value}, as TensorBoard reads the event files. AssertionError for a step that is there
    twice."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for stage in (folder / "tensorboard").iterdir():
        events = EventAccumulator(str(stage), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                line = found.setdefault((stage.name, event.step), {})
                assert name not in line, f"{name} of step {event.step} twice"
                line[name] = event.value
    return found


def lines(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The same of metrics.jsonl, figures that do not apply left out; values as precise as an event's."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        key = line.pop("stage"), line.pop("step")
        assert key not in found
        found[key] = {
            name: pytest.approx(value, rel=1e-6)
            for name, value in line.items()
            if value is not None and not math.isnan(value)
        }
    return found


def write(log: MetricsLog, stage: str, steps: range, value: float) -> None:
    for step in steps:
        log.write(stage, step, 10, {"reward/total": value + step, "tree/threads": None, "tree/eta": math.nan}, 0.0)


def test_a_real_run_is_shown_as_it_was_logged(tmp_path: Path, no_wandb: None) -> None:
    run(tiny_config(tmp_path / "tiny"))
    found = shown(tmp_path / "tiny")
    assert found == lines(tmp_path / "tiny")
    assert {stage for stage, _ in found} == {"sft", "sft_heldout", "rl", "rl_heldout"}
    assert len(found) == 3 + 1 + 2 + 1 and len(found["rl", 2]) > 40


def test_a_run_that_goes_back_shows_no_step_twice(tmp_path: Path, no_wandb: None) -> None:
    config = load(["logger.progress=false", "logger.tensorboard=true"])
    first = MetricsLog(config, tmp_path, is_main=True)
    write(first, "sft", range(1, 3), 0.0)
    write(first, "rl", range(1, 6), 0.0)
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as torn:  # killed while it wrote
        torn.write('{"stage": "rl", "st')
    with next((tmp_path / "tensorboard" / "rl").iterdir()).open("ab") as torn:
        torn.write(b"\x07\x00")
    second = MetricsLog(config, tmp_path, is_main=True)
    second.go_on("rl", 3)
    write(second, "rl", range(4, 8), 100.0)
    second.close()
    found = shown(tmp_path)
    assert found == lines(tmp_path) and sorted(found) == [("rl", n) for n in range(1, 8)] + [("sft", 1), ("sft", 2)]
    assert [found["rl", step]["reward/total"] for step in (3, 4)] == [3.0, 104.0]
    assert "tree/threads" not in found["rl", 1] and "tree/eta" not in found["rl", 1]


def test_an_evaluation_that_is_done_again_is_shown_once(tmp_path: Path, no_wandb: None) -> None:
    log = MetricsLog(load(["logger.progress=false", "logger.tensorboard=true"]), tmp_path, is_main=True)
    for accuracy in (0.25, 0.5):
        log.heldout("rl_heldout", 0, {"eval/accuracy": accuracy})
    log.heldout("sft_heldout", 0, {})  # no problems
    log.close()
    assert shown(tmp_path) == lines(tmp_path) == {("rl_heldout", 0): {"eval/accuracy": 0.5}}


def test_event_files_asked_for_half_way_hold_what_was_logged_before(tmp_path: Path, no_wandb: None) -> None:
    before = MetricsLog(load(["logger.progress=false"]), tmp_path, is_main=True)
    write(before, "sft", range(1, 4), 0.0)
    before.close()
    assert not (tmp_path / "tensorboard").exists()
    MetricsLog(load(["logger.progress=false", "logger.tensorboard=true"]), tmp_path, is_main=True).close()
    assert shown(tmp_path) == lines(tmp_path) and len(shown(tmp_path)) == 3


def test_a_new_start_forgets_the_event_files(tmp_path: Path, no_wandb: None) -> None:
    log = MetricsLog(load(["logger.progress=false", "logger.tensorboard=true"]), tmp_path, is_main=True)
    write(log, "rl", range(1, 3), 0.0)
    log.close()
    forget(tmp_path)
    assert not (tmp_path / "tensorboard").exists()


# -- the W&B workspace -------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def test_a_dry_run_needs_no_network_and_writes_every_metric_once(
    tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "dashboard.json"
    assert make_dashboard.main(["--dry-run", "--project", "mine", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["project"] == "mine"
    sections = found["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == list(SECTIONS)
    told: list[str] = []
    for section in sections:
        for config in (panel["config"] for panel in section["panels"]):
            own = config.get("metrics") or [config["metricRegex"]]
            told += own
            assert all(name.lstrip("^").startswith(f"{section['name']}/") for name in own)
            expected = {"sft": "sft/step", "eval": "eval/step"}.get(section["name"], "optim/step")
            assert config["xAxis"] == expected
    assert sorted(told) == sorted(m.pattern if "<term>" in m.name else m.name for m in METRICS)
    printed = capsys.readouterr().out
    assert f"would make a workspace of {len(SECTIONS)} sections" in printed and "stop/truncated" in printed
    again = tmp_path / "again.json"
    make_dashboard.main(["--dry-run", "--project", "mine", "--out", str(again)])
    assert again.read_text() == out.read_text()


def test_what_is_saved_is_what_the_dry_run_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: list[Any] = []

    def save(made: Any) -> Any:
        sent.append(logger_dashboard.definition(made))
        return SimpleNamespace(url="https://wandb.example/me/mine")

    monkeypatch.setattr(logger_dashboard.workspaces.Workspace, "save", save)
    assert make_dashboard.main(["--entity", "me"]) == 0
    make_dashboard.main(["--entity", "me", "--dry-run", "--out", str(tmp_path / "d.json")])
    assert sent == [json.loads((tmp_path / "d.json").read_text())]


def test_a_workspace_that_cannot_be_made_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(made: Any) -> Any:
        raise wandb.Error("No API key\nconfigured")

    monkeypatch.setattr(logger_dashboard.workspaces.Workspace, "save", refuse)
    assert make_dashboard.main(["--entity", "me"]) == 2
    assert make_dashboard.main([]) == 2
    (tmp_path / "file").touch()
    assert make_dashboard.main(["--dry-run", "--out", str(tmp_path / "file" / "d.json")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and "wandb login" in told[0] and "--entity" in told[1] and "--out" in told[2]
