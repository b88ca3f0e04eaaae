"""What an importer gives for one row: a worked problem, or the named reason why it gives none."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from rewards.verify.math import extract
from rollout.demonstration import Block, Demonstration
from rollout.errors import UserError
from rollout.search_trace import SearchRun


class CorpusError(UserError, ValueError):
    """A corpus cannot be read at all (no such file, no such split). A row that cannot be used is a `Drop` instead."""


class Drop(StrEnum):
    """Why a row is not used. The values are what a report shows."""

    NOT_A_ROW = "not a JSON object"
    NO_TEXT = "no text in the columns of this layout"
    NOT_UNICODE = "text that is no Unicode (lone surrogates)"
    NO_PROMPT = "no problem text"
    NO_CHAT = "not one user turn and one answer to it"
    CUT_OFF = "the response was cut off"
    NO_THINK = "the reasoning is not one think element at the start"
    NO_BLOCK = "no parallel block"
    NO_ANSWER = "no answer where this layout has it"
    UNCLOSED = "a tag is never closed"
    STRAY_TAG = "a tag outside its place"
    STRAY_TEXT = "text between the tags of a block"
    NO_THREADS = "a block without threads"
    NOT_AS_PLANNED = "not as many threads as outlines"
    NUMBERS = "threads or outlines are not numbered as they should be"
    NO_CONCLUSION = "a block without its conclusion"
    TOO_DEEP = "blocks nested too deeply"
    NO_ROOT = "a search that does not start at its root"
    SNAPSHOTS = "parent snapshots do not continue each other"
    SPAWN = "a spawn block that names no known nodes"
    CHILDREN = "children do not fit their spawn"
    ORPHAN = "a search text that belongs to no run"
    REPEATED = "the same problem and solution again"


class Refused(Exception):
    """Carries a reason out of a parser; importers turn it into their result."""

    def __init__(self, reason: Drop) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Worked:
    """One row: the problem's text, the verifier's reference and the solution.

    >>> Worked("1+1?", "2", Demonstration(("One and one. ",), "\\\\boxed{2}"))
    """

    prompt: str
    answer: str
    demonstration: Demonstration | SearchRun

    @property
    def parts(self) -> int:
        """Threads of its widest outer block; 1 when it runs nothing in parallel."""
        if isinstance(self.demonstration, SearchRun):
            return max(map(len, self.demonstration.spawns), default=1)
        blocks = [piece for piece in self.demonstration.reasoning if isinstance(piece, Block)]
        return max((len(block.threads) for block in blocks), default=1)

    @property
    def blocks(self) -> int:
        """Its outer blocks, or a search's spawns."""
        if isinstance(self.demonstration, SearchRun):
            return len(self.demonstration.spawns)
        return sum(isinstance(piece, Block) for piece in self.demonstration.reasoning)

    def in_sequence(self) -> Demonstration | SearchRun:
        """The solution with the bodies of its blocks one after the other; a search stays as it is."""
        if isinstance(self.demonstration, SearchRun):
            return self.demonstration
        pieces = (piece if isinstance(piece, str) else piece.in_sequence() for piece in self.demonstration.reasoning)
        return Demonstration(tuple(pieces), self.demonstration.answer)


def find_text(row: Mapping[str, Any], *columns: str) -> str | None:
    """The first of these columns that holds text which is not blank, to the letter; `a.b` is column b inside a.

    >>> find_text({"extra_info": {"question": "1+1?"}}, "problem", "extra_info.question")
    '1+1?'
    """
    for column in columns:
        value: Any = row
        for name in column.split("."):
            value = cast(Mapping[str, Any], value).get(name) if isinstance(value, Mapping) else None
        if isinstance(value, str) and value.strip():
            return unicode(value)
    return None


def text_of(row: Mapping[str, Any], *columns: str) -> str:
    """The same where there must be one. Refused when there is none."""
    text = find_text(row, *columns)
    if text is None:
        raise Refused(Drop.NO_TEXT)
    return text


def unicode(text: str) -> str:
    """The same text. Refused where JSON smuggled in what no file and no tokenizer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(Drop.NOT_UNICODE) from None
    return text


def boxed(text: str) -> str:
    r"""What the last `\boxed{}` holds, as the verifier reads it. Refused when there is none.

    >>> boxed(r"So it is \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    found = extract(text) if r"\boxed{" in text else None
    if found is None:
        raise Refused(Drop.NO_ANSWER)
    return found
