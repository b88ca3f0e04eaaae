"""The vocabulary as a W&B workspace: a section for each prefix, a panel for each metric, shares together in one."""

from typing import Any, cast

import wandb
import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces

from apr_train.vocabulary import AXES, METRICS, SECTIONS, Metric
from rollout.errors import UserError

TOGETHER = {
    "stop/": "how trajectories end",
    "verify/": "verdicts",
    "tree/alarm_": "alarms",
    "gap/logprob_": "sampler against trainer",
    "loss/clipped": "clipped tokens",
    "tree/l_": "lengths",
    "eval/accuracy": "accuracy, with its interval",
    "eval/l_": "lengths",
    "time/": "seconds of a step",
    "group/all_correct": "groups without contrast",
    "group/none_correct": "groups without contrast",
}
"""Metrics whose names begin so share a panel of this title with those of the same section and title."""
OPEN = ("reward", "tree", "stop", "verify", "group", "gap")
"""Sections that are unfolded at first: what docs/metrics.md says to look at first."""


class DashboardError(UserError, RuntimeError):
    """W&B did not take the workspace."""


def workspace(project: str, entity: str, name: str) -> workspaces.Workspace:
    """Built without a network. `entity` is a user or team; needed to save it, not to build it."""
    sections = [
        workspaces.Section(name=section, panels=_panels(section), is_open=section in OPEN) for section in SECTIONS
    ]
    return workspaces.Workspace(name=name, entity=entity, project=project, sections=sections)


def definition(made: workspaces.Workspace) -> dict[str, Any]:
    """What saving it sends to W&B, without the ids of panels, which are drawn anew each time."""
    view = made._to_model()  # no public method says it, and this is what `save` calls
    return _without_ids(view.model_dump(mode="json", by_alias=True, exclude_none=True))


def save(made: workspaces.Workspace) -> str:
    """Makes it on W&B; its address. Raises DashboardError."""
    try:
        return made.save().url
    except wandb.Error as error:
        raise DashboardError(f"no workspace on W&B: {error} (`wandb login` first; is --entity right?)") from error


def _panels(section: str) -> list[Any]:
    titles: dict[str, list[Metric]] = {}
    for metric in (each for each in METRICS if each.section == section):
        together = (title for start, title in TOGETHER.items() if metric.name.startswith(start))
        titles.setdefault(next(together, metric.name), []).append(metric)
    return [_panel(title, metrics) for title, metrics in titles.items()]


def _panel(title: str, metrics: list[Metric]) -> Any:
    first = metrics[0]
    if "<term>" in first.name:  # as many metrics as the reward has terms
        return panels.LinePlot(title=title, x=AXES[first.kind], title_y=first.unit, metric_regex=first.pattern)
    names = [metric.name for metric in metrics]
    return panels.LinePlot(title=title, x=AXES[first.kind], title_y=first.unit, y=cast(Any, names))


def _without_ids(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _without_ids(value) for key, value in part.items() if key != "__id__"}
    return [_without_ids(each) for each in part] if isinstance(part, list) else part
