"""A report's numbers as tables of written cells: rounding, intervals and words, and no figure of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

from apr_train.report.setup import setup_tables
from apr_train.report.table import NONE, Table, natural

Report = Mapping[str, Any]
FOLDED = 21
"""Lines. A longer table of details is folded."""
BETTER = {"accuracy": 1, "l_critical": -1, "l_total": -1, "strict": 1}
"""Which way each figure is better; others are neither."""
FIGURES = {
    "accuracy": ("accuracy", ".3f"),
    "l_critical": ("L_critical", ".1f"),
    "l_total": ("L_total", ".1f"),
    "eta": ("eta", ".3f"),
    "trigger_rate": ("trigger rate", ".3f"),
    "threads": ("threads", ".2f"),
    "strict": ("strict format", ".3f"),
}


def tables(report: Report) -> dict[str, list[Table]]:
    """The tables of each section of the page, empty ones left out."""
    sections = {
        "results": [lengths(report), together(report), shape(report), seconds(report)],
        "matched": [at_matched(report)],
        "failures": [counts(report, "verdicts"), counts(report, "outcomes"), counts(report, "flaws"), examples(report)],
        "splits": [split(report, name) for name in ("by_parts", "by_level", "by_source")],
        "comparisons": [in_words(report), in_numbers(report)],
        "setup": setup_tables(report),
    }
    return {name: [table for table in own if table.rows] for name, own in sections.items()}


def lengths(report: Report) -> Table:
    """How right, how long, how much faster."""
    heads = ["row", "problems", "samples", "not judged", "accuracy [95%]", "L_critical", "p50", "p90", "L_total"]
    heads += ["p50", "p90", "speed-up, of means [95%]", "speed-up, per problem [95%]"]
    base, rows = report["baseline"]["row"], list[list[str]]()
    for row, own in _figures(report):
        cells = [row["row"], written(own["problems"], "d"), written(own["samples"], "d"), str(own["not_judged"])]
        cells.append(ranged(own["accuracy"], own["accuracy_low"], own["accuracy_high"]))
        for length in ("l_critical", "l_total"):
            cells += [
                written(own[f"{length}_mean"], ".1f"),
                *(written(own[f"{length}_{p}"], "d") for p in ("p50", "p90")),
            ]
        rows.append(cells + _speedup(row, base))
    marked = frozenset(at for at, (row, _) in enumerate(_figures(report)) if row["row"] == base)
    note = f"Speed-up: L_critical of the baseline, {base}, over the row's." if base else ""
    return Table("Accuracy and length", heads, rows, note=note, marked=marked)


def _speedup(row: Mapping[str, Any], base: str | None) -> list[str]:
    found = row["speedup"]
    if found is None:
        return ["baseline", "baseline"] if row["row"] == base else [NONE, NONE]
    if "impossible" in found:
        return [found["impossible"]] * 2
    names = ("speedup_ratio_of_means", "speedup_mean_of_ratios")
    ends = [found[f"{name}_ci95"] for name in names]
    return [ranged(found[name], low, high, ".2f", "x") for name, (low, high) in zip(names, ends, strict=True)]


def together(report: Report) -> Table:
    """What several samples of a problem are good for."""
    ks = sorted({int(k) for _, own in _figures(report) for k in own["pass_at"]})
    heads = ["row", *(f"pass@{k}" for k in ks), *(f"maj@{k}" for k in ks), "distinct answers", "distinct openings"]
    rows = [
        [
            row["row"],
            *(written(own[name].get(str(k)), ".3f") for name in ("pass_at", "maj_at") for k in ks),
            written(own["distinct_answers"], ".2f"),
            written(own["distinct_openings"], ".3f"),
        ]
        for row, own in _figures(report)
    ]
    return Table("Several samples of a problem", heads, rows)


def shape(report: Report) -> Table:
    """How the responses fork."""
    columns = {
        "trigger rate": ("trigger_rate", ".3f"),
        "parallel ratio": ("parallel_ratio", ".3f"),
        "eta": ("eta_mean", ".3f"),
        "L_total / L_critical": ("self_speedup", ".2f"),
        "threads": ("threads_mean", ".2f"),
        "width": ("width_mean", ".2f"),
        "depth": ("depth_mean", ".2f"),
        "redundancy": ("redundancy_mean", ".3f"),
        "strict format": ("strict", ".3f"),
        "answered": ("answered", ".3f"),
        "window p90": ("window_p90", "d"),
    }
    rows = [[row["row"], *(written(own[key], form) for key, form in columns.values())] for row, own in _figures(report)]
    return Table(
        "Shape",
        ["row", *columns],
        rows,
        note="Width, depth and redundancy: of samples that fork. A search forks by itself; no grammar is checked.",
    )


def seconds(report: Report) -> Table:
    """Wall clock and processor time, of rows where they were measured."""
    heads = ["row", "samples timed", "s a sample", "CPU s a sample", "wall s", "CPU s", "GPU s"]
    heads += ["alone, problems", "alone, mean s", "p50", "p90"]
    rows: list[list[str]] = []
    for row in report["rows"]:
        time = row["time"]
        count = time.get("samples")
        each = time["cpu_seconds"] / count if count and "cpu_seconds" in time else None
        cells = [written(count, "d"), written(time.get("seconds_per_sample") if count else None, ".3f")]
        cells += [
            written(each, ".3f"),
            written(time.get("wall_seconds"), ".1f"),
            written(time.get("cpu_seconds"), ".1f"),
            written(time.get("device_seconds"), ".1f"),
        ]
        cells += [written(time.get("alone_problems"), "d")]
        cells += [written(time.get(f"alone_{name}"), ".3f") for name in ("mean", "p50", "p90")]
        if time:
            rows.append([row["row"], *cells])
    note = "Alone: one problem at a time, nothing else sampled (batch 1). Otherwise: as many at once as the setup says."
    return Table("Time", heads, rows, note=note)


def at_matched(report: Report) -> Table:
    """Every row at the same cost."""
    found = report["matched"]
    if not found:
        return Table("", [], [])
    heads = ["row", f"accuracy at L_total <= {found['total']:.0f} [95%]"]
    heads += [f"accuracy at L_critical <= {found['critical']:.0f} [95%]"]
    rows = [
        [label, *(ranged(own[axis]["accuracy"], own[axis]["low"], own[axis]["high"]) for axis in ("total", "critical"))]
        for label, own in found["rows"].items()
    ]
    note = (
        f"L_total: what 9 in 10 samples of {found['dearest']}, the dearest row, need at most; a row of several samples "
        f"votes with as many as fit. L_critical: what 9 in 10 samples of {found['reference']}, the first row, need at "
        "most; a row of several samples votes with those that fit."
    )
    return Table("One budget for all rows", heads, rows, note=note)


def counts(report: Report, what: str) -> Table:
    """Samples by verdict, outcome or flaw; the most frequent first."""
    own = {row["row"]: row["verdicts"] if what == "verdicts" else row["figures"][what] for row in report["rows"]}
    kinds = sorted({kind for each in own.values() for kind in each})
    kinds.sort(key=lambda kind: -sum(each.get(kind, 0) for each in own.values()))
    rows = [
        [row["row"], *(_share(own[row["row"]].get(kind, 0), row["figures"]["samples"]) for kind in kinds)]
        for row in report["rows"]
    ]
    title = {"verdicts": "Verdicts", "outcomes": "Outcomes", "flaws": "Flaws: first breach of the strict grammar"}[what]
    return Table(title, ["row", *kinds], rows if kinds else [])


def examples(report: Report) -> Table:
    """The first samples of each row that are not right."""
    keys = ("problem_id", "number", "verdict", "outcome", "flaw", "answer")
    rows = [
        [row["row"], *(NONE if one[key] in (None, "") else _cut(str(one[key])) for key in keys)]
        for row in report["rows"]
        for one in row["examples"]
    ]
    heads = ["row", "problem", "sample", "verdict", "outcome", "flaw", "answer"]
    return Table(
        "First samples that are not right", heads, rows, words=len(heads), wide=True, folded=len(rows) > FOLDED
    )


def split(report: Report, name: str) -> Table:
    """The same figures of the problems of one number of parts, level or source."""
    what = name.removeprefix("by_")
    heads = ["row", what, "problems", "samples", "accuracy [95%]", "L_critical", "L_total", "trigger rate", "threads"]
    rows = [
        [
            *(row["row"], key, written(own["problems"], "d"), written(own["samples"], "d")),
            ranged(own["accuracy"], own["accuracy_low"], own["accuracy_high"]),
            *(written(own[f"{length}_mean"], ".1f") for length in ("l_critical", "l_total")),
            *(written(own["trigger_rate"], ".3f"), written(own["threads_mean"], ".2f")),
            *(written(own["width_mean"], ".2f"), written(own["strict"], ".3f")),
        ]
        for row, figures in _figures(report)
        for key, own in sorted(figures[name].items(), key=lambda item: natural(item[0]))
    ]
    return Table(f"By {what}", [*heads, "width", "strict format"], rows, words=2, folded=len(rows) > FOLDED)


def in_words(report: Report) -> Table:
    """Which differences are more than chance: a line for each pair of rows."""
    names = [name for name, _ in FIGURES.values()]
    rows: list[list[str]] = []
    for pair in report["comparisons"]:
        told = {FIGURES[each["figure"]][0]: reading(each) for each in pair.get("differences", ())}
        other: str = pair.get("impossible", NONE)
        rows.append([pair["other"], pair["one"], *(told.get(name, other) for name in names)])
    note = f"A dash: no difference shown (p >= {report['level']}), which does not say that there is none."
    return Table("In words", ["row", "against", *names], rows, words=2 + len(names), note=note)


def in_numbers(report: Report) -> Table:
    """The differences themselves, with intervals; those that are more than chance are set off."""
    heads = ["row", "against", "figure", "the row is", "mean against", "mean of row", "difference [95%]", "p (Holm)"]
    rows: list[list[str]] = []
    marked: set[int] = set()
    for pair in report["comparisons"]:
        for each in pair.get("differences", ()):
            name, form = FIGURES[each["figure"]]
            if each["significant"]:
                marked.add(len(rows))
            rows.append(
                [
                    *(pair["other"], pair["one"], name, reading(each)),
                    *(written(each["one"], form), written(each["other"], form)),
                    ranged(each["difference"], each["low"], each["high"], f"+{form}"),
                    written(each["p"], ".4f"),
                ]
            )
    note = (
        "Paired by problem; 95% bootstrap intervals over problems; p by sign flips, corrected by Holm for all lines of "
        f"this table. Significant: p < {report['level']}."
    )
    folded = len(rows) > FOLDED
    return Table("In numbers", heads, rows, words=4, note=note, folded=folded, marked=frozenset(marked))


def reading(difference: Mapping[str, Any]) -> str:
    """What a difference says, in words.

    >>> reading({"figure": "l_critical", "difference": -40.0, "significant": True, ...})
    'lower, better'
    """
    if not difference["significant"]:
        return NONE
    up = difference["difference"] > 0
    way = BETTER.get(difference["figure"])
    judged = "" if way is None else ", better" if (way > 0) == up else ", worse"
    return f"{'higher' if up else 'lower'}{judged}"


# -- cells -------------------------------------------------------------------------------------------------------------


def written(value: float | None, form: str) -> str:
    """A number, or the sign for none. Whole numbers get commas between thousands."""
    if value is None:
        return NONE
    return f"{round(value):,}" if form == "d" else format(value, form)


def ranged(value: float | None, low: float | None, high: float | None, form: str = ".3f", unit: str = "") -> str:
    """With its interval in brackets."""
    if value is None:
        return NONE
    ends = "" if low is None or high is None else f" [{format(low, form)}, {format(high, form)}]"
    return f"{format(value, form)}{unit}{ends}"


def _share(count: int, samples: int) -> str:
    return f"{count:,} ({100 * count / samples:.1f}%)" if count else "0"


def _cut(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[:most]} .."


def _figures(report: Report) -> Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [(row, row["figures"]) for row in report["rows"]]
