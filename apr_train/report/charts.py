"""Draws a report's numbers as PNG pictures: curves, points, bars. Names of rows are text, never mathematics."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from apr_train.report.table import natural
from rollout.errors import shortened
from rollout.shown import visible

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of Okabe and Ito, told apart by the colour-blind; their yellow is too pale for lines on white."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vPX*"
WIDTH, DPI = 10.0, 110
SHADED = 3
"""Up to so many rows have their intervals drawn; more would hide each other."""
FLAWS = 7
"""Flaws with a colour of their own; rarer ones are drawn together. The table has all."""
AXES = {
    "critical": ("accuracy within a critical path", "critical path allowed (tokens)"),
    "total": ("accuracy within tokens in all", "tokens allowed in all"),
    "window": ("accuracy within a context window", "window (tokens, prompt included)"),
}
TRAINING = {
    "reward/total": "reward",
    "reward/accuracy": "accuracy",
    "tree/l_critical": "critical path (tokens)",
    "tree/eta": "eta = 1 - L_critical / L_total",
    "tree/trigger_rate": "trigger rate",
    "gap/logprob_mean_abs": "sampler/trainer gap (nats)",
}


def draw(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Every picture that the report has data for, as PNG by its name."""
    drawings: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
        "plane": plane,
        "budgets": lambda report: curves(report, ("critical", "total")),
        "window": lambda report: curves(report, ("window",)),
        "adaptivity": adaptivity,
        "training": training,
        "failures": failures,
    }
    found: dict[str, bytes] = {}
    with _plain_text():
        for name, drawing in drawings.items():
            if (figure := drawing(report)) is not None:
                found[name] = _png(figure)
    return found


def curves(report: Mapping[str, Any], names: Sequence[str]) -> Figure | None:
    """Accuracy within budgets of each row, one panel an axis; the points are those of the report."""
    if not report["rows"]:
        return None
    figure, panels = _panels(len(names), height=4.0, width=WIDTH if len(names) > 1 else 7.5)
    styles = styles_of(report)
    for panel, name in zip(panels, names, strict=True):
        drawn = report["curves"][name]
        widest = max((points[-1]["budget"] for points in drawn.values() if points), default=0)
        for label, points in drawn.items():
            points = [point for point in points if point["accuracy"] is not None]
            budgets = [point["budget"] for point in points]
            panel.plot(budgets, [point["accuracy"] for point in points], markersize=3.5, **styles[label])
            if points:  # more budget than that changes nothing
                ends = [points[-1]["accuracy"]] * 2
                panel.plot([budgets[-1], widest], ends, color=styles[label]["color"], linewidth=0.8, alpha=0.5)
            if len(drawn) <= SHADED:
                low, high = [point["low"] for point in points], [point["high"] for point in points]
                panel.fill_between(budgets, low, high, color=styles[label]["color"], alpha=0.1, linewidth=0)
        panel.set_xscale("log")
        panel.set_ylim(-0.03, 1.03)
        _plain_ticks(panel.xaxis, lambda value: f"{value:,.0f}")
        _label(panel, *AXES[name], "accuracy" if panel is panels[0] else "")
    return _legend(figure, panels)


def plane(report: Mapping[str, Any]) -> Figure | None:
    """Each row as a point: its accuracy over its mean L_critical, and over its mean L_total. The checkpoints of one
    training run are joined in their order."""
    if not report["rows"]:
        return None
    figure, panels = _panels(2, height=3.8)
    styles, rows = styles_of(report), {row["row"]: row["figures"] for row in report["rows"]}
    for panel, length, what in (
        (panels[0], "l_critical_mean", "mean L_critical (tokens): the wait"),
        (panels[1], "l_total_mean", "mean L_total (tokens): the work"),
    ):
        for labels in report["checkpoints"].values():
            own = [rows[label] for label in labels if rows[label]["accuracy"] is not None]
            panel.plot([f[length] for f in own], [f["accuracy"] for f in own], color="#888888", linewidth=1, zorder=1)
        for label, figures in rows.items():
            if figures["accuracy"] is None:
                continue
            error = [[figures["accuracy"] - (figures["accuracy_low"] or 0)], [_high(figures) - figures["accuracy"]]]
            style: dict[str, Any] = {
                **styles[label],
                "linestyle": "none",
                "markersize": 7,
                "elinewidth": 1,
                "capsize": 2,
            }
            panel.errorbar(
                *([figures[length]], [figures["accuracy"]]),
                yerr=[[max(0.0, each) for each in side] for side in error],
                **style,
            )
        panel.set_xlim(left=0)
        _label(panel, f"accuracy against {what.partition(' (')[0]}", what, "accuracy" if panel is panels[0] else "")
    return _legend(figure, panels)


def adaptivity(report: Mapping[str, Any]) -> Figure | None:
    """Trigger rate and width of each row that forks at all, over difficulty."""
    forks = {row["row"] for row in report["rows"] if row["figures"]["trigger_rate"]}
    found = {label: each for label, each in report["adaptivity"].items() if label in forks}
    if not found:
        return None
    kinds = list(dict.fromkeys(each["by"] for each in found.values()))
    figure, panels = _panels(2, height=3.6, rows=len(kinds))
    styles = styles_of(report)
    for at, kind in enumerate(kinds):
        own = {label: each["points"] for label, each in found.items() if each["by"] == kind}
        places = sorted({p["difficulty"] for points in own.values() for p in points}, key=natural)
        where = {"parts": "independent parts", "level": "level"}.get(kind, "quarter by what the baseline needs")
        for panel, name, what in zip(
            panels[2 * at : 2 * at + 2],
            ("trigger_rate", "width_mean"),
            ("trigger rate", "width of the widest block"),
            strict=True,
        ):
            for label, points in own.items():
                shown = [point for point in points if point[name] is not None]
                x = [places.index(point["difficulty"]) for point in shown]
                panel.plot(x, [point[name] for point in shown], markersize=5, **styles[label])
            panel.set_xticks(range(len(places)), [_name(place, 16) for place in places])
            panel.set_ylim(bottom=0)
            _label(panel, what, where, "")
    return _legend(figure, panels)


def training(report: Mapping[str, Any]) -> Figure | None:
    """Each metric over RL steps, one line a run."""
    runs = report["training"]
    names = [name for name in TRAINING if any(name in own for own in runs.values())]
    if not names:
        return None
    columns = min(3, len(names))
    figure, panels = _panels(columns, height=2.7, rows=-(-len(names) // columns))
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(panels, names, strict=False):
        for at, (run, own) in enumerate(runs.items()):
            points = own.get(name, [])
            style = {**_style(at, run), "marker": "o" if len(points) < 3 else "", "linewidth": 1.4}
            panel.plot([step for step, _ in points], [value for _, value in points], **style)
        if name.startswith("gap/"):
            panel.set_yscale("log")
            _plain_ticks(panel.yaxis, lambda value: f"{value:.1e}")
        elif name != "reward/total":
            panel.set_ylim(bottom=0)
        _label(panel, TRAINING[name], "RL step", "")
    return _legend(figure, panels)


def failures(report: Mapping[str, Any]) -> Figure | None:
    """Shares of verdicts, outcomes and flaws of each row, as stacked bars."""
    rows = report["rows"]
    if not rows:
        return None
    bars = 0.27 * max(3, len(rows))  # inches
    figure, panels = _panels(3, height=2.3 + bars, width=WIDTH + 0.9)
    for panel, title in zip(panels, ("verdicts", "outcomes", "flaws"), strict=True):
        counts = [dict(row["verdicts"] if title == "verdicts" else row["figures"][title]) for row in rows]
        if title == "flaws":
            counts = [_with_rest(own, counts, row["figures"]["samples"]) for own, row in zip(counts, rows, strict=True)]
        kinds = list(dict.fromkeys(kind for own in counts for kind in own))
        kinds.sort(key=lambda kind: -sum(own.get(kind, 0) for own in counts))
        left = [0.0] * len(rows)
        for at, kind in enumerate(kinds):
            shares = [own.get(kind, 0) / row["figures"]["samples"] for own, row in zip(counts, rows, strict=True)]
            hatch = "////" if at >= len(COLOURS) else None
            colour = "#d9d9d9" if kind in ("none", "correct", "answered") else COLOURS[at % len(COLOURS)]
            panel.barh(range(len(rows)), shares, left=left, color=colour, hatch=hatch, label=_name(kind), height=0.72)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        panel.set_xlim(0, 1)
        panel.set_yticks(range(len(rows)), [_name(row["row"], 34) if panel is panels[0] else "" for row in rows])
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
        _label(panel, title, "share of samples", "")
        panel.legend(frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.5 / bars))
    return figure


def _with_rest(own: dict[str, int], all_: Sequence[Mapping[str, int]], samples: int) -> dict[str, int]:
    """The most frequent flaws of all rows; the others as one; and the samples without a flaw."""
    sums: dict[str, int] = {}
    for each in all_:
        for flaw, count in each.items():
            sums[flaw] = sums.get(flaw, 0) + count
    kept = sorted(sums, key=lambda flaw: (-sums[flaw], flaw))[: FLAWS - 1]
    found = {"none": samples - sum(own.values())} | {flaw: own.get(flaw, 0) for flaw in kept}
    rest = sum(own.values()) - sum(own.get(flaw, 0) for flaw in kept)
    return {kind: count for kind, count in (found | {"others": rest}).items() if count}


# -- helpers -----------------------------------------------------------------------------------------------------------


def styles_of(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Colour, line and marker of each row, the same in every picture."""
    return {row["row"]: _style(at, row["row"]) for at, row in enumerate(report["rows"])}


def _style(at: int, label: str) -> dict[str, Any]:
    return {
        "color": COLOURS[at % len(COLOURS)],
        "linestyle": DASHES[at // len(COLOURS) % len(DASHES)],
        "marker": MARKERS[at % len(MARKERS)],
        "linewidth": 1.6,
        "label": _name(label),
    }


def _name(text: str, most: int = 40) -> str:
    """On one line; a leading underscore would hide a name from a legend."""
    short = shortened(visible(text), most)
    return f" {short}" if short.startswith("_") else short


def _high(figures: Mapping[str, Any]) -> float:
    return figures["accuracy"] if figures["accuracy_high"] is None else figures["accuracy_high"]


def _panels(columns: int, *, height: float, width: float = WIDTH, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8.5)
    return figure, panels


def _label(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(x, fontsize=9)
    panel.set_ylabel(y, fontsize=9)


def _plain_ticks(axis: Axis, write: Callable[[float], str]) -> None:
    """Of a logarithmic axis: numbers, not powers of ten."""
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, panels: Sequence[Axes]) -> Figure:
    """Below all panels, in as many columns as fit; what several panels show is named once."""
    handles: list[Any] = []
    labels: list[str] = []
    for panel in panels:
        new = [(h, text) for h, text in zip(*panel.get_legend_handles_labels(), strict=True) if text not in labels]
        handles, labels = [*handles, *(h for h, _ in new)], [*labels, *(text for _, text in new)]
    longest = max((len(label) for label in labels), default=0)
    columns = max(1, min(len(labels), int(115 * figure.get_figwidth() / WIDTH / (longest + 7))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
    return figure


def _png(figure: Figure) -> bytes:
    written = BytesIO()
    figure.savefig(written, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return written.getvalue()


@contextmanager
def _plain_text() -> Iterator[None]:
    """No name is read as mathematics; a letter that the font lacks is drawn as a box, and the page has it as text."""
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield
