"""The machine behind every dialect whose fork, threads and join are marked by tags; a dialect is its `Grammar`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rollout.demonstration import Block, Demonstration, Pieces
from rollout.dialects.base import (
    NO_SETTINGS,
    Child,
    DialectError,
    Fork,
    Ids,
    Join,
    Name,
    Reading,
    Reasoning,
    Result,
    Script,
    Turn,
    forks,
    told,
)
from rollout.options import read_options
from rollout.search_trace import SearchRun
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory

_NUMBER = re.compile(r"\s*([0-9]{1,3}(?:\.[0-9]{1,3}){0,7})\s*:")
_TAG = re.compile(r"(</?[A-Za-z_0-9]+>)")


@dataclass(frozen=True, slots=True)
class Grammar:
    """The tags of one dialect, as text; `{k}` is the thread's number, from 1. White space between tags is optional.

    The model writes `opens` and, where there are `items`, one numbered item per thread; its last tag is `forks`, where
    it stops. The client then writes `shared` once and `header` per thread. A thread stops itself at `ends`, else the
    client writes `body_end` and `ends`. After the last one the client writes `join`, and the model goes on with the
    conclusion, if `concludes` names the tags that end it, and with the reasoning.
    """

    forks: str
    header: str
    ends: str
    join: str
    opens: tuple[str, ...] = ()
    items: tuple[tuple[str, str], ...] = ()
    """The tags around an item; a block's items are all of one kind."""
    trial: str = ""
    """The opening tag of items that are attempts: the first to close itself ends the block."""
    threads: int | None = None
    """How many threads a fork has, where no items say so."""
    begins: bool = False
    """The client forks before the model writes anything; `forks` is then what it writes first."""
    cut: bool = False
    """The first thread to close itself ends the block, and the parent reads all as they then are."""
    nests: bool = False
    """Threads may fork; items and headers are then numbered 1, 2, and in thread 2: 2.1, 2.2."""
    shared: str = ""
    body_end: str = ""
    """What a thread writes before `ends`."""
    concludes: tuple[str, ...] = ()
    closers: tuple[tuple[str, str], ...] = ()
    """Pairs that a root which ran out of budget may have left open, inner ones first: the client closes them."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Every tag of the grammar, each once."""
        marks = "".join(f"{self.header}{self.ends}".format(k=k) for k in range(1, (self.threads or 1) + 1))
        texts = f"{self.forks}{self.shared}{marks}{self.join}"
        pairs = [tag for pair in (*self.items, *self.closers) for tag in pair]
        return tuple(dict.fromkeys([*self.opens, *_TAG.findall(texts), *self.concludes, *pairs]))


@dataclass(frozen=True, slots=True)
class NoOptions:
    """A dialect with nothing to set."""


class Tagged(Reasoning):
    """Subclasses give `name`, `joins` (the first is the usual one) and, from their `Options`, the `grammar`."""

    name: ClassVar[str]
    joins: ClassVar[tuple[Join, ...]] = ("transcript", "stitched")
    Options: ClassVar[type[Any]] = NoOptions

    @classmethod
    def grammar(cls, options: Any) -> Grammar:
        raise NotImplementedError

    @classmethod
    def tags(cls, options: Mapping[str, Any] = NO_SETTINGS) -> tuple[str, ...]:
        """What the tokenizer must know. Raises DialectError for an unknown or senseless option."""
        return tuple(dict.fromkeys([*cls.think_tags, *cls.grammar(cls.read_options(options)).tags]))

    @classmethod
    def read_options(cls, options: Mapping[str, Any]) -> Any:
        return read_options(f"dialect {cls.name}", cls.Options, options, DialectError)

    def __init__(self, tokens: Tokens, join: Join | None = None, options: Mapping[str, Any] = NO_SETTINGS) -> None:
        super().__init__(tokens)
        self.join_rule: Join = join or self.joins[0]
        self.rules = self.grammar(self.read_options(options))
        if self.rules.nests and (self.rules.trial or self.rules.cut):
            raise DialectError(f"dialect {self.name}: threads that race cannot nest")
        tag = tokens.tag
        self.opens = tuple(map(tag, self.rules.opens))
        self.forks = None if self.rules.begins else tag(self.rules.forks)
        self.items = {tag(left): tag(right) for left, right in self.rules.items}
        self.trial = tag(self.rules.trial) if self.rules.trial else None
        self.concludes = tuple(map(tag, self.rules.concludes))
        self.closers = tuple((tag(left), tag(right)) for left, right in self.rules.closers)
        self.closing = len(self.closers) + 1
        self._ends = tuple(dict.fromkeys(self.end_thread(k) for k in range(1, (self.rules.threads or 1) + 1)))
        self._joined = self._marked(self.rules.join)
        self.tag_ids = frozenset(map(tag, self.tags(options)))

    def end_thread(self, thread: int) -> int:
        """The id with which thread `thread` (from 1) ends itself."""
        return self.tokens.tag(self.rules.ends.format(k=thread))

    # -- what the model writes -------------------------------------------------------------------------------------

    def begin(self) -> Fork | None:
        return self._fork((), self.rules.threads or 1) if self.rules.begins else None

    def stops(self, thread: Name) -> Ids:
        forks = () if self.forks is None or (thread and not self.rules.nests) else (self.forks,)
        return (*(self._ends if thread else ()), *forks, self.eos)

    def read(self, turn: Turn) -> Reading:
        if turn.finish == "length":
            return Reading("truncated")
        if turn.ids[-1] == self.eos:
            return Reading("final")
        if turn.ids[-1] in self._ends and turn.thread:
            return Reading("join")
        if self.end_think in turn.before or self.end_think in turn.ids:
            return Reading("malformed", reason="after the reasoning")
        if self.rules.threads is not None:
            return Reading("fork", self._fork(turn.thread, self.rules.threads))
        items, trial, reason = self._read_items(turn.ids, turn.thread)
        if reason:
            return Reading("malformed", reason=reason)
        return Reading("fork", self._fork(turn.thread, len(items), trial))

    def _read_items(self, ids: Ids, thread: Name) -> tuple[list[str], bool, str]:
        """The items of the trailing block opening, without their numbers, and whether they are trials; or why it is
        none."""
        opens, forks = self.rules.opens, self.rules.forks
        if self.opens[0] not in ids:
            return [], False, f"no {opens[0]} before {forks}"
        start = len(ids) - 1 - ids[::-1].index(self.opens[0])
        rest = self._without_blank(ids[start:-1])
        if tuple(rest[: len(self.opens)]) != self.opens:
            return [], False, f"no {opens[-1]} right after {opens[0]}"
        items, at, kinds = list[str](), len(self.opens), set[int]()
        while at < len(rest):
            end = next((i for i in range(at + 1, len(rest)) if rest[i] in self.tag_ids), None)
            if rest[at] not in self.items or end is None or rest[end] != self.items[rest[at]]:
                return [], False, f"something other than items between {opens[-1]} and {forks}"
            kinds.add(rest[at])
            text = self.tokens.decode(rest[at + 1 : end])
            numbered = _NUMBER.match(text)
            if numbered is None or numbered[1] != self._label(thread, len(items) + 1):
                return [], False, "items are not numbered 1, 2, 3, ..."
            items.append(text[numbered.end() :])
            at = end + 1
        reason = "no item at all" if not items else "items of two kinds in one block" if len(kinds) > 1 else ""
        return items, kinds == {self.trial}, reason

    def _without_blank(self, ids: Ids) -> list[int]:
        """Drops white space that stands between two tags; text inside an item is kept."""
        kept: list[int] = []
        inside = False
        for token in ids:
            if token in self.tag_ids:
                inside = token in self.items
            elif not inside and not self.tokens.decode((token,)).strip():
                continue
            kept.append(token)
        return kept

    # -- what the client writes ------------------------------------------------------------------------------------

    def _fork(self, thread: Name, threads: int, trial: bool = False) -> Fork:
        rules = self.rules
        shared = rules.shared + (rules.forks if rules.begins else "")
        children = tuple(
            Child(
                self._marked(rules.header.format(k=self._label(thread, k))),
                (*self.tokens.text(rules.body_end), self.end_thread(k)),
            )
            for k in range(1, threads + 1)
        )
        return Fork(children, self._marked(shared), "winner" if trial else "cut" if rules.cut else "all")

    def _label(self, thread: Name, k: int) -> str:
        """The number of a thread: `2`, or `1.2` for the second one inside thread 1."""
        return ".".join(map(str, (*thread[1::2], k)))

    def join(self, fork: Fork, results: Sequence[Result], thread: Name) -> Ids:
        return self._joined

    def join_tokens(self, fork: Fork, thread: Name) -> int:
        return len(self._joined)

    def _marked(self, text: str) -> Ids:
        """Ids of what the client writes: here tags are meant, and text between them stays text."""
        pieces = [piece for piece in _TAG.split(text) if piece]
        ids = [(self.tokens.tag(piece),) if _TAG.fullmatch(piece) else self.tokens.text(piece) for piece in pieces]
        return tuple(token for piece in ids for token in piece)

    def force_answer(self, response: Ids) -> Ids:
        if self.end_think in response:
            return ()
        still_open = [right for left, right in self.closers if response.count(left) > response.count(right)]
        return (*still_open, self.end_think)

    # -- whole trajectories ----------------------------------------------------------------------------------------

    def tasks(self, trajectory: Trajectory) -> dict[Name, str]:
        found: dict[Name, str] = {}
        for block, ids in forks(trajectory) if self.items else ():
            items, _, _ = self._read_items(ids, block[:-1])
            found |= {(*block, k): item for k, item in enumerate(items, start=1)}
        return found

    def check(self, trajectory: Trajectory) -> str | None:
        owed: dict[Name, Ids] = {(): self.concludes} if self.rules.begins else {}  # what each thread must write first
        for call in trajectory.calls:
            sampled = trajectory.segments[call.sampled]
            name, tags = sampled.thread, [token for token in sampled.ids if token in self.tag_ids]
            if name and {self.think, self.end_think}.intersection(tags):
                return "a thread holds a tag, or did not close itself"
            first = owed.get(name, ())
            own = [token for token in tags if token not in (self.think, self.end_think)]
            if tuple(own[: len(first)]) != first:
                return "a conclusion is not closed first"
            own = own[len(first) :]
            if call.event == "fork":
                opens_once = not self.opens or (own.count(self.opens[0]) == 1 and own[0] == self.opens[0])
                if not opens_once or self.end_think in tags or (self.rules.threads and own != [self.forks]):
                    return "a tag outside its place"
                owed[name] = self.concludes
            elif name and (call.event not in ("join", "cancelled") or tags[len(first) :] != self._close_of(call, name)):
                return "a thread holds a tag, or did not close itself"
            elif not name and (call.event != "final" or own):
                return "a tag outside its place in the root"
        ended = {trajectory.segments[call.sampled].thread: call.event for call in trajectory.calls}
        threads = {segment.thread for segment in trajectory.segments if segment.thread}
        if any(ended.get(name) not in ("join", "cancelled") for name in threads):
            return "a thread holds a tag, or did not close itself"  # after its own block it had no token left
        return self.check_reasoning(trajectory.root_ids()) or self.check_outcome(trajectory)

    def _close_of(self, call: Any, name: Name) -> list[int]:
        return [] if call.event == "cancelled" else [self.end_thread(name[-1])]

    def write(self, demonstration: Demonstration | SearchRun) -> Script:
        told_one = told(demonstration, self.name)
        script: Script = {}
        pieces, first = told_one.reasoning, [self.think]
        if self.rules.begins:
            block, pieces = self._stages(pieces)
            self._write_threads(block, (0,), script)
            first = [*self.tokens.text(block.conclusion), *self.concludes]
        self._write(pieces, (), first, self.answer(told_one.answer), script)
        return script

    def _write(self, pieces: Pieces, name: Name, turn: list[int], tail: Ids, script: Script) -> None:
        """The turns of one thread, from what its first one begins with to the tail of its last."""
        turns = script.setdefault(name, [])
        for piece in pieces:
            block = piece if isinstance(piece, str) else self._fitting(piece, name)
            if isinstance(block, str):
                turn += self.tokens.text(block)
                continue
            turn += self.opens
            left, right = self._item_of(block)
            for k, (outline, _) in enumerate(block.threads, start=1) if self.items else ():
                turn += [left, *self.tokens.text(f"{self._label(name, k)}:{outline}"), right]
            assert self.forks is not None
            turns.append((*turn, self.forks))
            self._write_threads(block, (*name, len(turns) - 1), script)
            turn = [*self.tokens.text(block.conclusion), *self.concludes]
        turns.append((*turn, *tail))

    def _write_threads(self, block: Block, name: Name, script: Script) -> None:
        for k, body in enumerate(block.bodies(), start=1):
            tail = (*self.tokens.text(self.rules.body_end), self.end_thread(k))
            self._write(body, (*name, k), [], tail, script)

    def _item_of(self, block: Block) -> tuple[int, int]:
        """The tags around this block's items; (0, 0) without items. A dialect without trials writes them as parts."""
        pairs = list(self.items.items()) or [(0, 0)]
        return next((pair for pair in pairs if (pair[0] == self.trial) == (block.kind == "or")), pairs[0])

    def _fitting(self, block: Block, thread: Name) -> Block | str:
        """The block as this dialect can write it there: at its fixed number of threads, or, where it does not nest or
        the block has too few parts, one part after the other."""
        if not block.threads:
            raise DialectError("a parallel block of no threads")
        if self.forks is None or (thread and not self.rules.nests):
            return block.in_sequence()
        return block.of_width(self.rules.threads) if self.rules.threads is not None else block

    def _stages(self, pieces: Pieces) -> tuple[Block, Pieces]:
        """The block that the client starts with, and what follows it: the first block if it has a part per path, else
        every path solves the whole problem."""
        paths = self.rules.threads or 1
        block = pieces[0] if pieces else ""
        if isinstance(block, Block) and len(block.threads) == paths:
            return block, pieces[1:]
        whole = Block((("", pieces),)).in_sequence()
        return Block(tuple(("", whole) for _ in range(paths))), ()
