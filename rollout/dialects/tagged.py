"""The machine behind every flat dialect whose fork, threads and join are marked by tags; a dialect is its `Grammar`."""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from rollout.demonstration import Block, Demonstration
from rollout.dialects.base import DialectError, Reading, Reasoning, Script
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory

_NUMBERED = re.compile(r"\s*([0-9]{1,3})\s*:(.*)", re.DOTALL)
_TAG = re.compile(r"(</?[A-Za-z_0-9]+>)")


@dataclass(frozen=True, slots=True)
class Grammar:
    """The tags of one dialect, as text; `{k}` is the thread's number, from 1. White space between tags is optional.

    The model writes `opens` and, where there is an `item`, one numbered item per thread; its last tag is `forks`, where
    it stops. The client then writes `shared` once and `header` per thread. A thread stops itself at `ends`, else the
    client writes `closes`. After the last one the client writes `join`, and the model goes on with the conclusion, if
    `concludes` names the tags that end it, and with the reasoning.
    """

    opens: tuple[str, ...]
    forks: str
    header: str
    ends: str
    join: str
    item: tuple[str, str] | None = None
    threads: int | None = None
    """How many threads a fork has, where no items say so."""
    shared: str = ""
    body_end: str = ""
    """What a thread writes before `ends`."""
    concludes: tuple[str, ...] = ()
    closers: tuple[tuple[str, str], ...] = ()
    """Pairs that a root which ran out of budget may have left open, inner ones first: the client closes them."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Every tag of the grammar, each once."""
        numbers = range(1, (self.threads or 1) + 1)
        marks = "".join(f"{self.header}{self.ends}".format(k=k) for k in numbers)
        pairs = [tag for pair in self.closers for tag in pair]
        tags = [*self.opens, *(self.item or ()), self.forks, *_TAG.findall(marks), *_TAG.findall(self.join)]
        return tuple(dict.fromkeys([*tags, *self.concludes, *pairs]))


class Tagged(Reasoning):
    """Flat blocks, transcript join. Subclasses give `name`, `grammar` and `tags`."""

    name: ClassVar[str]
    grammar: ClassVar[Grammar]

    def __init__(self, tokens: Tokens) -> None:
        super().__init__(tokens)
        grammar, tag = self.grammar, tokens.tag
        self.opens = tuple(map(tag, grammar.opens))
        self.forks = tag(grammar.forks)
        self.item = None if grammar.item is None else (tag(grammar.item[0]), tag(grammar.item[1]))
        self.concludes = tuple(map(tag, grammar.concludes))
        self.closers = tuple((tag(left), tag(right)) for left, right in grammar.closers)
        numbers = range(1, (grammar.threads or 1) + 1)
        self._ends = tuple(dict.fromkeys(self.end_thread(k) for k in numbers))
        self._tag_ids = frozenset(tag(each) for each in self.tags)

    def end_thread(self, thread: int) -> int:
        """The id with which thread `thread` (from 1) ends itself."""
        return self.tokens.tag(self.grammar.ends.format(k=thread))

    def stops(self, in_thread: bool) -> tuple[int, ...]:
        return (*self._ends, self.eos) if in_thread else (self.forks, self.eos)

    def read(self, ids: tuple[int, ...], finish: Literal["stop", "length"], in_thread: bool) -> Reading:
        if finish == "length":
            return Reading("truncated")
        if ids[-1] == self.eos:
            return Reading("final")
        if in_thread:
            return Reading("join")
        if self.grammar.threads is not None:
            return Reading("fork", self.grammar.threads)
        threads, reason = self._read_items(ids)
        return Reading("malformed", reason=reason) if reason else Reading("fork", threads)

    def _read_items(self, ids: tuple[int, ...]) -> tuple[int, str]:
        """How many items the trailing block opening holds, or why it is none."""
        assert self.item is not None  # a grammar has items or a number of threads
        opens, (item, end_item) = self.grammar.opens, self.item
        if self.opens[0] not in ids:
            return 0, f"no {opens[0]} before {self.grammar.forks}"
        start = len(ids) - 1 - ids[::-1].index(self.opens[0])
        rest = self._without_blank(ids[start:-1])
        if tuple(rest[: len(self.opens)]) != self.opens:
            return 0, f"no {opens[-1]} right after {opens[0]}"
        count, at = 0, len(self.opens)
        while at < len(rest):
            end = next((i for i in range(at + 1, len(rest)) if rest[i] in self._tag_ids), None)
            if rest[at] != item or end is None or rest[end] != end_item:
                return 0, f"something other than {self._name(item)} n: text {self._name(end_item)} before the fork"
            numbered = _NUMBERED.fullmatch(self.tokens.decode(rest[at + 1 : end]))
            count += 1
            if numbered is None or int(numbered[1]) != count:
                return 0, f"{self._name(item)} is not numbered 1, 2, 3, ..."
            at = end + 1
        return count, "" if count else f"no {self._name(item)} at all"

    def _name(self, tag: int) -> str:
        return self.tokens.decode((tag,))

    def _without_blank(self, ids: tuple[int, ...]) -> list[int]:
        """Drops white space that stands between two tags; text inside an item is kept."""
        kept: list[int] = []
        inside = False
        for token in ids:
            if token in self._tag_ids:
                inside = self.item is not None and token == self.item[0]
            elif not inside and not self.tokens.decode((token,)).strip():
                continue
            kept.append(token)
        return kept

    def fork(self, threads: int) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        headers = [self._marked(self.grammar.header.format(k=k)) for k in range(1, threads + 1)]
        return self._marked(self.grammar.shared), headers

    def close_thread(self, thread: int) -> tuple[int, ...]:
        return self._marked(f"{self.grammar.body_end}{self.grammar.ends.format(k=thread)}")

    def join(self) -> tuple[int, ...]:
        return self._marked(self.grammar.join)

    def _marked(self, text: str) -> tuple[int, ...]:
        """Ids of what the client writes: here tags are meant, and text between them stays text."""
        pieces = [piece for piece in _TAG.split(text) if piece]
        ids = [(self.tokens.tag(piece),) if _TAG.fullmatch(piece) else self.tokens.text(piece) for piece in pieces]
        return tuple(token for piece in ids for token in piece)

    def force_answer(self, response: list[int]) -> tuple[int, ...]:
        if self.end_think in response:
            return ()
        still_open = [right for left, right in self.closers if response.count(left) > response.count(right)]
        return (*still_open, self.end_think)

    def check(self, trajectory: Trajectory) -> str | None:
        owed: tuple[int, ...] = ()  # tags that the root's next turn must begin with
        for call in trajectory.calls:
            sampled = trajectory.segments[call.sampled]
            tags = [token for token in sampled.ids if token in self._tag_ids]
            if sampled.thread:
                if call.event != "join" or tags != [self.end_thread(sampled.thread[-1])]:
                    return "a thread holds a tag, or did not close itself"
                continue
            own = [token for token in tags if token not in (self.think, self.end_think)]
            if tuple(own[: len(owed)]) != owed:
                return "the root does not close its conclusion first"
            own = own[len(owed) :]
            opens_once = self.opens[0] in own and own[::-1].index(self.opens[0]) == len(own) - 1
            if (call.event == "fork" and (not opens_once or self.end_think in tags)) or (
                call.event != "fork" and (call.event != "final" or own)
            ):
                return "a tag outside its place in the root"
            owed = self.concludes
        return self.check_reasoning(trajectory.root_ids())

    def write(self, demonstration: Demonstration) -> Script:
        script: Script = {(): []}
        turn: list[int] = [self.think]
        for piece in demonstration.reasoning:
            if not isinstance(piece, Block):
                turn += self.tokens.text(piece)
                continue
            self._check_width(piece)
            block = len(script[()])
            turn += self.opens if self.item is not None else ()
            for k, (outline, body) in enumerate(piece.threads, start=1):
                if self.item is not None:
                    turn += [self.item[0], *self.tokens.text(f"{k}:{outline}"), self.item[1]]
                own = self.tokens.text(f"{body}{self.grammar.body_end}")
                script[(block, k)] = [(*own, self.end_thread(k))]
            script[()].append((*turn, self.forks))
            turn = [*self.tokens.text(piece.conclusion), *self.concludes]
        script[()].append((*turn, *self.answer(demonstration.answer)))
        return script

    def _check_width(self, block: Block) -> None:
        if not block.threads:
            raise DialectError("a parallel block of no threads")
        fixed = self.grammar.threads
        if fixed is not None and len(block.threads) != fixed:
            raise DialectError(
                f"dialect {self.name} has {fixed} threads in every block, and the demonstration {len(block.threads)}: "
                "show problems of that many parts, or take a dialect whose model plans its threads"
            )
