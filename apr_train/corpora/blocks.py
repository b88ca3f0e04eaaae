r"""Reads reasoning with tagged blocks: one parser, and for each layout the tags it looks for.

White space, one rule for all layouts: text is kept to the letter, but for what a client of ours writes around it by
itself. Of a thread and a conclusion that is one newline after the opening tag, and one before the closing tag; of a
thread and an outline also the number with its colon. White space between the tags of a block is dropped.

    <Thread>\n1: a b\n</Thread>   body " a b"    <Outline>2: c</Outline>   outline " c"    </Parallel>\n\nSo   "\n\nSo"
"""

import re
from dataclasses import dataclass
from typing import Literal

from apr_train.corpora.base import Drop, Refused
from rollout.demonstration import Block, Pieces

MAX_DEPTH = 5
"""Blocks inside blocks; the published engine stops there, the published data at 2."""
_NUMBER = re.compile(r"\s*([0-9]{1,3}(?:\.[0-9]{1,3}){0,7})\s*:")


@dataclass(frozen=True, slots=True)
class Markup:
    """The tags of a block in the order in which they come. Names are written without brackets.

    `opens` begin a block, then come outlines (`item`, where the layout has them) and `planned` that ends them, threads,
    `joined` that ends those, the conclusion, and `closes`. `others`: further tags of the layout, which may not occur
    inside the reasoning.
    """

    opens: tuple[str, ...]
    thread: str
    conclusion: str
    item: str = ""
    planned: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    must_conclude: bool = True
    nests: bool = False
    numbers: Literal["counted", "matching", "none"] = "counted"
    """counted: 1, 2, 3, ... in every block. matching: each thread has its outline's number, whatever that is."""
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every tag of the layout, each once."""
        marks = (*self.opens, self.item, *self.planned, self.thread, *self.joined, self.conclusion, *self.closes)
        bare = [name.strip("</>") for name in (*marks, *self.others)]
        return tuple(dict.fromkeys(name for name in bare if name))

    @property
    def pattern(self) -> re.Pattern[str]:
        """Any tag of the layout, opening or closing."""
        return re.compile(f"(</?(?:{'|'.join(self.names)})>)")

    def read(self, text: str) -> Pieces:
        """Text and blocks of a whole reasoning. Refused with the first thing that does not fit.

        >>> NPR.read("Hm. <guideline><plan>1: a</plan></guideline><step>1: b</step><takeaway>c</takeaway>")
        ('Hm. ', Block(threads=((' a', ' b'),), conclusion='c', kind='and', tasks=()))
        """
        return _Parser(self, text).pieces("", 0)

    def holds(self, text: str) -> bool:
        """Whether any tag of the layout occurs in a text."""
        return self.pattern.search(text) is not None


def tail_of(pieces: Pieces) -> tuple[Pieces, str]:
    """What comes up to the last block, and the text after it.

    >>> tail_of(("a", Block((("", "b"),)), "c"))
    (('a', Block(threads=(('', 'b'),), conclusion='', kind='and', tasks=())), 'c')
    """
    if pieces and isinstance(pieces[-1], str):
        return pieces[:-1], pieces[-1]
    return pieces, ""


class _Parser:
    """A cursor over text, tag, text, tag, ..., text."""

    def __init__(self, markup: Markup, text: str) -> None:
        self.markup = markup
        self.cut = markup.pattern.split(text)
        self.at = 0

    @property
    def text(self) -> str:
        """What stands before the next tag."""
        return self.cut[self.at]

    @property
    def tag(self) -> str:
        """The next tag; empty at the end."""
        return self.cut[self.at + 1] if self.at + 1 < len(self.cut) else ""

    def expect(self, tag: str, missing: Drop = Drop.STRAY_TAG) -> None:
        """Steps over a tag that nothing but white space stands before."""
        if not self.tag:
            raise Refused(Drop.UNCLOSED)
        if self.text.strip():
            raise Refused(Drop.STRAY_TEXT)
        if self.tag != tag:
            raise Refused(missing)
        self.at += 2

    def until(self, tag: str) -> str:
        """The text up to a tag, which must be the next one."""
        text = self.text
        if self.tag != tag:
            raise Refused(Drop.STRAY_TAG if self.tag else Drop.UNCLOSED)
        self.at += 2
        return text

    def pieces(self, end: str, depth: int) -> Pieces:
        """Text and blocks up to the tag `end`; up to the end of the text when it is empty."""
        found: list[str | Block] = []
        while True:
            if self.text:
                found.append(self.text)
            if self.tag == end:
                self.at += 2
                return tuple(found)
            if self.tag != self.markup.opens[0]:
                raise Refused(Drop.STRAY_TAG if self.tag else Drop.UNCLOSED)
            if depth and not self.markup.nests:
                raise Refused(Drop.STRAY_TAG)
            if depth == MAX_DEPTH:
                raise Refused(Drop.TOO_DEEP)
            found.append(self.block(depth))

    def block(self, depth: int) -> Block:
        markup, planned, threads = self.markup, list[tuple[str, str]](), list[tuple[str, str | Pieces]]()
        self.at += 2
        for tag in markup.opens[1:]:
            self.expect(tag)
        while markup.item and self.tag == f"<{markup.item}>":
            self.expect(self.tag)
            planned.append(self.numbered(self.until(f"</{markup.item}>")))
        for tag in markup.planned:
            self.expect(tag)
        while self.tag == f"<{markup.thread}>":
            self.expect(self.tag)
            threads.append(self.thread(self.pieces(f"</{markup.thread}>", depth + 1)))
        self.check_threads([number for number, _ in planned], [number for number, _ in threads])
        for tag in markup.joined:
            self.expect(tag)
        conclusion = self.conclusion()
        for tag in markup.closes:
            self.expect(tag)
        outlines = [outline for _, outline in planned] or [""] * len(threads)
        return Block(tuple(zip(outlines, [body for _, body in threads], strict=True)), conclusion)

    def conclusion(self) -> str:
        if self.tag != f"<{self.markup.conclusion}>" and not self.markup.must_conclude:
            return ""
        self.expect(f"<{self.markup.conclusion}>", Drop.NO_CONCLUSION)
        return self.until(f"</{self.markup.conclusion}>").removeprefix("\n").removesuffix("\n")

    def check_threads(self, planned: list[str], threads: list[str]) -> None:
        markup = self.markup
        if not threads:
            raise Refused(Drop.NO_THREADS if self.tag else Drop.UNCLOSED)
        if markup.item and len(planned) != len(threads):
            raise Refused(Drop.NOT_AS_PLANNED)
        if markup.numbers == "none":
            return
        counted = [str(k) for k in range(1, len(threads) + 1)]
        wanted = counted if markup.numbers == "counted" else planned
        if planned != wanted or threads != wanted or len(set(threads)) < len(threads):
            raise Refused(Drop.NUMBERS)

    def numbered(self, text: str) -> tuple[str, str]:
        """A number and what follows its colon."""
        found = _NUMBER.match(text)
        if found is None:
            raise Refused(Drop.NUMBERS)
        return found[1], text[found.end() :]

    def thread(self, pieces: Pieces) -> tuple[str, str | Pieces]:
        """The number and the body of a thread, without the frame; a body of text alone is a str."""
        whole: list[str | Block] = list(pieces)
        number, first = "", whole[0] if whole and isinstance(whole[0], str) else ""
        bare = first.removeprefix("\n")
        if self.markup.numbers != "none":
            number, bare = self.numbered(first)
        if first:
            whole[0] = bare
        if whole and isinstance(whole[-1], str):
            whole[-1] = whole[-1].removesuffix("\n")
        body = tuple(piece for piece in whole if piece != "")
        if any(isinstance(piece, Block) for piece in body):
            return number, body
        return number, "".join(piece for piece in body if isinstance(piece, str))
