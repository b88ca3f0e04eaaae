"""All numbers of a report, as one object of plain JSON: the page and the pictures show these and no others."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from apr_train.evaluation.compare import LEVEL, compare_all
from apr_train.evaluation.matched import matched
from apr_train.evaluation.metrics import AXES, adaptivity, by_problem, curve, speedups, summarise
from apr_train.evaluation.samples import Sample
from apr_train.report.folders import Entry, ReportError, Run
from rollout.errors import nearest

BASELINES = ("no_forks", "sequential", "sequential_baseline")
"""Names of rows, or of training runs, that are taken as the baseline where none is named."""
CURVES = ("reward/total", "reward/accuracy", "tree/l_critical", "tree/eta", "tree/trigger_rate", "gap/logprob_mean_abs")
"""Metrics of RL steps that are drawn."""
OTHER = "other problems"
NO_LENGTH = "a response without tokens"
EXAMPLES = 5
"""Samples that are not right, shown of each row."""
Pairs = Sequence[tuple[str, str]]


def build(runs: Sequence[Run], baseline: str | None = None, pairs: Pairs = ()) -> dict[str, Any]:
    """Everything that is shown. `baseline` is a row's name or label; `pairs` are the rows to compare, all with the
    baseline where none are given. Raises ReportError for a row that there is not. Same samples, same object."""
    entries = {entry.label: entry for run in runs for entry in run.entries}
    data = {run.name: run for run in runs}
    base, why = _baseline(list(entries.values()), baseline)

    def same(one: Entry, other: Entry) -> bool:
        return _same_problems(one, data[one.run], other, data[other.run])

    rows = [_row(entry, base, base is not None and same(entry, base)) for entry in entries.values()]
    chosen = [(find(entries.values(), a), find(entries.values(), b)) for a, b in pairs]
    if not pairs and base:
        chosen = [(base, entry) for entry in entries.values() if entry is not base]
    samples = {label: entry.samples for label, entry in entries.items()}
    adapting = {
        label: _adaptivity(entry, row["figures"], base if base and entry is not base and same(entry, base) else None)
        for (label, entry), row in zip(entries.items(), rows, strict=True)
    }
    return cast(
        dict[str, Any],
        finite(
            {
                "baseline": {"row": base.label if base else None, "why": why},
                "runs": [_run(run) for run in runs],
                "rows": rows,
                "matched": _matched([entry for entry in entries.values() if same(entry, next(iter(entries.values())))]),
                "curves": {axis: {label: curve(own, axis) for label, own in samples.items()} for axis in AXES},
                "adaptivity": {label: found for label, found in adapting.items() if found},
                "training": {run.name: found for run in runs if (found := training(run))},
                "checkpoints": {run.name: [e.label for e in run.entries] for run in runs if run.kind == "training"},
                "comparisons": _comparisons([(a, b, same(a, b)) for a, b in chosen]),
                "level": LEVEL,
            }
        ),
    )


def _matched(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """Rows at the same cost: those of the first row's problems."""
    return asdict(matched({entry.label: entry.samples for entry in entries})) if entries else None


def find(entries: Iterable[Entry], name: str) -> Entry:
    """The row of this label, or the only one of this name. Raises ReportError."""
    entries = list(entries)
    found = [e for e in entries if e.label == name] or [e for e in entries if e.name == name]
    if len(found) == 1:
        return found[0]
    labels = [entry.label for entry in entries]
    if found:
        raise ReportError(f"several rows are called {name!r}: say which, {' or '.join(e.label for e in found)}")
    near = nearest(name, labels)
    raise ReportError(f"there is no row {name!r}; {f'did you mean {near}?' if near else 'rows: ' + ', '.join(labels)}")


def training(run: Run) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each of CURVES over a run's RL steps; metrics that were never logged are left out."""
    steps = [row for row in run.metrics if row["stage"] == "rl"]
    found = {name: [(row["step"], row[name]) for row in steps if _finite(row.get(name))] for name in CURVES}
    return {name: points for name, points in found.items() if points}


def _baseline(entries: Sequence[Entry], name: str | None) -> tuple[Entry | None, str]:
    """The row that others are measured against, and why it is that one."""
    if name is not None:
        return find(entries, name), "named by --baseline"
    last = {entry.run: entry for entry in entries}
    for entry in entries:
        if entry.name in BASELINES:
            return entry, f"the first row called {entry.name}, since --baseline names none"
        if entry.run in BASELINES and last[entry.run] is entry:
            return entry, f"the last row of the run {entry.run}, since --baseline names none"
    return None, f"none: no row is called {' or '.join(BASELINES)}, and --baseline names none"


def _same_problems(one: Entry, run: Run, other: Entry, of: Run) -> bool:
    """Whether two rows answered the same problems in the same order. Equal names are not enough where what was noted
    of the problems differs: generated tasks number theirs."""
    if list(by_problem(one.samples)) != list(by_problem(other.samples)):
        return False
    if run is of or not run.identity or not of.identity:
        return True
    first, second = run.identity, of.identity
    if run.kind == of.kind and first.get("problems") == second.get("problems"):
        return True
    if run.kind == of.kind == "evaluation":
        return False
    keys = {key for key in (*first, *second) if key in ("data.task", "data.seed") or key.startswith("data.options.")}
    return all(first.get(key) == second.get(key) for key in keys)


def _row(entry: Entry, base: Entry | None, paired: bool) -> dict[str, Any]:
    verdicts = Counter(sample.verdict for sample in entry.samples)
    return {
        "row": entry.label,
        "run": entry.run,
        "name": entry.name,
        "figures": summarise(entry.samples),
        "time": entry.time,
        "settings": entry.settings,
        "speedup": _speedup(entry, base, paired),
        "verdicts": dict(sorted(verdicts.items(), key=lambda item: (-item[1], item[0]))),
        "examples": [
            {key: getattr(s, key) for key in ("problem_id", "number", "verdict", "outcome", "flaw", "answer")}
            for s in _examples(entry.samples)
        ],
    }


def _examples(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.correct is not True][:EXAMPLES]


def _speedup(entry: Entry, base: Entry | None, paired: bool) -> dict[str, Any] | None:
    """None without a baseline and of the baseline itself."""
    if base is None or entry is base:
        return None
    if not paired:
        return {"impossible": OTHER}
    try:
        return dict(speedups(base.samples, entry.samples))
    except ValueError:  # the problems are the same: then nothing was written for one of them
        return {"impossible": NO_LENGTH}


def _adaptivity(entry: Entry, figures: Mapping[str, Any], base: Entry | None) -> dict[str, Any] | None:
    """Trigger rate and width against difficulty: by parts or levels where problems have them, else by what the
    baseline needs."""
    for split, by in (("by_parts", "parts"), ("by_level", "level")):
        if len(figures[split]) > 1 and sum(own["problems"] for own in figures[split].values()) == figures["problems"]:
            return {"by": by, "points": [{"difficulty": key, **own} for key, own in _kept(figures[split]).items()]}
    if base is None:
        return None
    points = adaptivity(entry.samples, base.samples)
    return {"by": "baseline", "points": [{"difficulty": str(at), **own} for at, own in enumerate(points, start=1)]}


def _kept(split: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    kept = ("problems", "accuracy", "trigger_rate", "width_mean", "threads_mean", "l_critical_mean", "l_total_mean")
    return {key: {name: figures[name] for name in kept} for key, figures in split.items()}


def _comparisons(chosen: Sequence[tuple[Entry, Entry, bool]]) -> list[dict[str, Any]]:
    """Differences of each pair; p is corrected for all of them together."""
    found = compare_all([(one.samples, other.samples) for one, other, paired in chosen if paired])
    told = iter(found)
    rows: list[dict[str, Any]] = []
    for one, other, paired in chosen:
        own: dict[str, Any] = {"one": one.label, "other": other.label}
        if paired:
            own["differences"] = [
                asdict(each) | {"difference": round(each.difference, 6), "significant": each.significant}
                for each in next(told)
            ]
        else:
            own["impossible"] = OTHER
        rows.append(own)
    return rows


def _run(run: Run) -> dict[str, Any]:
    """What was noted of a run, without its samples."""
    kept = ("seed", "ranks", "model", "weights", "task", "setup", "command", "wall_seconds", "gap_logprob_mean_abs")
    told = {key: run.summary[key] for key in kept if key in run.summary}
    return {"name": run.name, "folder": str(run.folder), "kind": run.kind, **told, "identity": run.identity}


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): finite(each) for key, each in cast(dict[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in cast(Sequence[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
