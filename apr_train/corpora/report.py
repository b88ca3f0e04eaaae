"""What became of the rows of a corpus: how many were read, kept, and dropped for which reason."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from apr_train.corpora.base import Worked
from rollout.shown import visible


@dataclass
class Report:
    """Counts of one import. `first` is where the first row of a reason stands.

    >>> report = Report("npr.json", "npr")
    >>> report.drop("no parallel block", "npr.json:3")
    >>> report.as_dict()["dropped"]
    {'no parallel block': {'rows': 1, 'first': 'npr.json:3'}}
    """

    source: str
    layout: str
    read: int = 0
    kept: int = 0
    blocks: int = 0
    """Outer blocks of the kept rows."""
    parallel: int = 0
    """Kept rows with two threads or more somewhere."""
    first: dict[str, str] = field(default_factory=dict[str, str])
    rows: dict[str, int] = field(default_factory=dict[str, int])

    def keep(self, worked: Worked) -> None:
        """Counts a row that was kept."""
        self.kept += 1
        self.parallel += worked.parts > 1
        self.blocks += worked.blocks

    def drop(self, reason: str, where: str) -> None:
        """Counts a row that was not kept."""
        self.first.setdefault(reason, where)
        self.rows[reason] = self.rows.get(reason, 0) + 1

    def as_dict(self) -> dict[str, Any]:
        """Everything, as it is saved."""
        dropped = {reason: {"rows": count, "first": self.first[reason]} for reason, count in self._by_count()}
        counts = {"read": self.read, "kept": self.kept, "parallel": self.parallel, "blocks": self.blocks}
        return {"source": self.source, "layout": self.layout, **counts, "dropped": dropped}

    def _by_count(self) -> list[tuple[str, int]]:
        return sorted(self.rows.items(), key=lambda each: (-each[1], each[0]))

    def table(self) -> Table:
        """At most 80 columns wide."""
        title = f"{visible(self.source)} as {self.layout}: {self.kept} of {self.read} rows kept"
        table = Table(title=Text(title), width=80)
        table.add_column("reason", overflow="fold")
        table.add_column("rows", justify="right", no_wrap=True)
        table.add_column("first", overflow="fold", max_width=26)
        shares = f"{self.parallel} parallel, {self.blocks} blocks"
        table.add_row(f"kept ({shares})", str(self.kept), "")
        table.add_section()
        for reason, count in self._by_count():
            table.add_row(visible(reason), str(count), visible(self.first[reason]))
        return table


def show(report: Report, more: Mapping[str, Table] | None = None) -> None:
    """Prints a report, and further tables under it."""
    console = Console(width=80, markup=False, highlight=False)
    for table in (report.table(), *(more or {}).values()):
        console.print(table)


def save(values: Mapping[str, Any], file: Path) -> None:
    """Writes what a report holds as JSON."""
    file.write_text(json.dumps(values, indent=1) + "\n")
