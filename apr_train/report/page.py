"""Writes a report as one HTML page that asks for nothing: style and pictures are in it, and every text is escaped."""

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from apr_train.report.tables import tables
from rollout.shown import visible

PICTURES = {
    "plane": "Each row at its accuracy, over what it makes one wait for (left) and what it costs (right); bars are "
    "95% intervals. Up and to the left is better. A grey line joins the checkpoints of one training run.",
    "budgets": "Accuracy within a budget. Left: of all samples of a problem, those whose critical path fits vote, as "
    "who waits would have it. Right: the first samples that fit together vote, as who pays for tokens would have it.",
    "window": "Accuracy of the first sample where no call of it may see more than so many tokens, prompt included.",
    "adaptivity": "Does it fork where it pays? Rows that fork at all, over difficulty.",
    "training": "Over RL steps: means of a step's rollouts, not of held-out problems.",
    "failures": "What became of the samples, and which rule of the strict grammar they broke first.",
}
"""What is written below each picture."""


def page(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The whole page. `pictures` are PNG by name, those of `charts.draw`."""
    style = _file("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        loader=DictLoader({"page.html": _file("page.html")}),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        policy=policy,
        style=Markup(style),
        title=", ".join(run["name"] for run in report["runs"]),
        report=report,
        tables=tables(report),
        pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
        captions=PICTURES,
    )


def _shown(value: Any) -> Any:
    """Texts with what a reader cannot see written out: control characters, and marks that turn the direction."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _file(name: str) -> str:
    return resources.files("apr_train.report").joinpath(name).read_text(encoding="utf-8")
