"""Published corpora of parallel reasoning, one file a layout: rows in, worked problems and a report of the rest out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from apr_train.corpora import apr, multiverse, npr, parallel_r1, threadweaver
from apr_train.corpora.base import CorpusError, Drop, Worked
from apr_train.corpora.report import Report
from apr_train.corpora.source import read_rows
from rollout.options import hint

Row = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Layout:
    """`read`: a pure function of one row. `group`: what first puts rows together that belong to one run."""

    read: Callable[[Mapping[str, Any]], Worked | Drop]
    group: Callable[[Iterable[Row]], Iterator[Row]] = iter


LAYOUTS = {
    "threadweaver": Layout(threadweaver.read),
    "multiverse": Layout(multiverse.read),
    "parallel_r1": Layout(parallel_r1.read),
    "npr": Layout(npr.read),
    "apr": Layout(apr.read, apr.runs_of),
}


@dataclass(frozen=True)
class Corpus:
    """The rows that were kept, each with where it stands, and the report of all."""

    rows: list[tuple[str, Worked]]
    report: Report = field(repr=False)


def import_corpus(path: str, layout: str, split: str = "train") -> Corpus:
    """Reads a published corpus (see `source.read_rows` for what `path` may be). A row is never an error.

    Raises CorpusError when there is no such layout, file or dataset.

    >>> import_corpus("sample_964/train.parquet", "threadweaver").report.kept
    964
    """
    if layout not in LAYOUTS:
        raise CorpusError(f"there is no layout {layout!r}: {hint(layout, LAYOUTS)}")
    return import_rows(read_rows(path, split), layout, path)


def import_rows(rows: Iterable[tuple[str, object]], layout: str, source: str = "rows") -> Corpus:
    """The same over rows that were read already.

    A row that repeats an earlier one's problem and solution is dropped: published files hold several epochs.
    """
    report, kept = Report(source, layout), dict[Worked, str]()
    for where, row in LAYOUTS[layout].group(_objects(rows, report)):
        worked = LAYOUTS[layout].read(row)
        if isinstance(worked, Worked) and worked in kept:
            worked = Drop.REPEATED
        if isinstance(worked, Drop):
            report.drop(worked, where)
            continue
        kept[worked] = where
        report.keep(worked)
    return Corpus([(where, worked) for worked, where in kept.items()], report)


def _objects(rows: Iterable[tuple[str, object]], report: Report) -> Iterator[Row]:
    """Counts all rows, drops those that are no objects."""
    for where, row in rows:
        report.read += 1
        if isinstance(row, Mapping):
            yield where, cast(Mapping[str, Any], row)
        else:
            report.drop(Drop.NOT_A_ROW, where)
