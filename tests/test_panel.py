"""The panel in W&B is the page of a few whole groups, only when asked for, and only where somebody may look."""

import json
from pathlib import Path
from typing import Any

import pytest
import wandb
from helpers import toy_tokens
from test_viewer import data_of
from trees import grow, judged

from apr_train.compose import load
from apr_train.logger import MetricsLog
from apr_train.panel import RolloutPanel
from apr_train.stored import recorded
from rollout.viewer import Recorded


def group(count: int, step: int = 1) -> list[Recorded]:
    """A step's rollouts, the last of them not judged."""
    ids = toy_tokens().text("a2<script>")
    one = judged(grow(ids, [[ids], [ids]], ids, prompt=3))
    return [*(recorded(step, one, float(i), 0.5, {"outcome": 1.0}) for i in range(count - 1)), recorded(step, one)]


class Drawn:
    """A log that keeps what it is given."""

    def __init__(self, draws: bool = True) -> None:
        self.draws, self.pages = draws, list[str]()

    def draw(self, name: str, html: str) -> None:
        assert name == "rollouts"
        self.pages.append(html)


def panel(log: Any, *overrides: str) -> RolloutPanel:
    return RolloutPanel(load(["experiment=quickstart", *overrides]), log, toy_tokens())


def test_every_nth_step_shows_whole_groups_and_no_more() -> None:
    log = Drawn()
    drawing = panel(log, "logger.panel_every=2", "algorithm.group_size=5")
    for step in range(1, 5):
        drawing.write(group(40, step))
    found = [data_of(page) for page in log.pages]
    assert [each["step"].tolist() for each in found] == [[2] * 30, [4] * 30]  # of 32, a whole number of groups of 5
    assert found[0]["reward"].tolist() == list(range(30))
    assert found[0]["terms"] == ["outcome"]
    assert "<script>" in "".join(found[0]["pieces"][i] for i in found[0]["token"])


def test_a_group_larger_than_a_panel_is_shown_whole_and_what_was_not_judged_has_no_reward() -> None:
    log = Drawn()
    panel(log, "logger.panel_every=1", "algorithm.group_size=40").write(group(40))
    rewards = data_of(log.pages[0])["reward"].tolist()
    assert len(rewards) == 40 and rewards[-1] != rewards[-1]


@pytest.mark.parametrize(("draws", "every"), [(True, 0), (False, 1)])
def test_no_page_is_made_where_nobody_asked_or_nobody_looks(draws: bool, every: int) -> None:
    log = Drawn(draws)
    panel(log, f"logger.panel_every={every}").write(group(8))
    assert log.pages == []


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_the_page_reaches_wandb_unchanged_beside_its_steps_metrics(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B would add a style sheet of its own host to it; the page allows none and needs none."""
    config = load(["experiment=quickstart", f"logger={mode}", "logger.panel_every=1", "logger.progress=false"])
    log = MetricsLog(config, tmp_path, True)
    logged: list[tuple[dict[str, Any], bool]] = []
    real = wandb.Run.log
    monkeypatch.setattr(
        wandb.Run, "log", lambda self, data, *a, commit=None, **k: (logged.append((data, commit)), real(self, data))[1]
    )
    RolloutPanel(config, log, toy_tokens()).write(group(8))
    log.write("rl", 1, 1, {"reward": 1.0}, 0.0)
    log.close()
    files = list(tmp_path.rglob("media/html/*.html"))
    if mode == "disabled":
        assert files == []
        return
    assert [commit for _, commit in logged] == [False, None]
    assert len(files) == 1
    text = files[0].read_text()
    assert "wandb" not in text and data_of(text)["step"].tolist() == [1] * 8
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["reward"] == 1.0
