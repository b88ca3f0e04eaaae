"""What a table of a report is: written cells."""

from dataclasses import dataclass, field

NONE = "–"
"""What does not apply, or was not measured."""


@dataclass(frozen=True, slots=True)
class Table:
    """Heads and rows of cells. The first `words` columns are text, the others numbers; `wide`: cells may wrap;
    `folded`: shown when asked for.

    >>> Table("results", ["row", "accuracy"], [["policy", "0.98 [0.95, 1.00]"]])
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    words: int = 1
    note: str = ""
    wide: bool = False
    folded: bool = False
    marked: frozenset[int] = field(default_factory=frozenset[int])
    """Numbers of the rows to be set off."""


def natural(text: str) -> tuple[float, str]:
    """Numbers in their order, before other texts in theirs."""
    return (float(text), "") if text.isdecimal() and len(text) < 16 else (float("inf"), text)
