"""APR's search language (arXiv 2504.15466): sub-searches by node id, whose results take the place of the spawn block.

    trace <Calling Sub Searches>\\n<Start Sub Search 0 at level 1> Moving to Node #0,1\\n...<End Calling Sub Searches>
    each child: the node's own start lines, rebuilt by the client from the trace, then its search, eos
    trace <Sub Searches>\\n<No Solution in Sub Search 0 at level 1 at Node #0,1>\\n...<End Sub Searches>\\n trace eos

The spawn block is dropped from what the parent reads after the join, as in the paper. A child sees nothing of its
parent, and gives back its optimal path, or that it found none. Only the client may write `<Sub Searches>`. Budgets in
the prompt ("Sub Call Budget: 3 ") are the task's (`data=countdown_search`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rollout import search_trace
from rollout.demonstration import Demonstration
from rollout.dialects.base import (
    NO_SETTINGS,
    Child,
    DialectError,
    Fork,
    Ids,
    Join,
    Name,
    Reading,
    Result,
    Script,
    Turn,
)
from rollout.options import read_options
from rollout.search_trace import SearchRun
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class AprOptions:
    """`surface`: the paper's lines in full, or a terse form of the same for models that read characters."""

    surface: Literal["full", "terse"] = "full"


class Apr:
    """One level of sub-searches; several rounds of them."""

    name: ClassVar[str] = "apr"
    joins: ClassVar[tuple[Join, ...]] = ("message",)
    closing: int | None = None

    @classmethod
    def tags(cls, options: Mapping[str, Any] = NO_SETTINGS) -> tuple[str, ...]:
        """What the tokenizer must know."""
        read_options("dialect apr", AprOptions, options, DialectError)
        return search_trace.TAGS

    def __init__(self, tokens: Tokens, join: Join | None = None, options: Mapping[str, Any] = NO_SETTINGS) -> None:
        self.tokens, self.eos, self.join_rule = tokens, tokens.eos, join or self.joins[0]
        self.surface = search_trace.SURFACES[read_options("dialect apr", AprOptions, options, DialectError).surface]
        self.calling, self.end_calling, self.subs, self.end_subs = map(tokens.tag, search_trace.TAGS)
        self.tag_ids = frozenset((self.calling, self.end_calling, self.subs, self.end_subs))
        self.newline = tokens.text("\n")

    def begin(self) -> Fork | None:
        return None

    def stops(self, thread: Name) -> Ids:
        return (self.eos,) if thread else (self.end_calling, self.subs, self.eos)

    def read(self, turn: Turn) -> Reading:
        if turn.finish == "length":
            return Reading("truncated")
        last = turn.ids[-1]
        if last == self.eos:
            return Reading("join" if turn.thread else "final")
        if last == self.subs:
            return Reading("malformed", reason="the model wrote <Sub Searches> itself")
        if self.calling not in turn.ids:
            return Reading("malformed", reason="no <Calling Sub Searches> before <End Calling Sub Searches>")
        begin = len(turn.ids) - 1 - turn.ids[::-1].index(self.calling)
        block = self.tokens.decode(turn.ids[begin + 1 : -1])
        trace = self.tokens.decode((*turn.prompt, *turn.before, *turn.ids[:begin]))
        prompts = search_trace.resolve_spawn(block, trace, self.surface)
        if isinstance(prompts, str):
            return Reading("malformed", reason=prompts)
        children = tuple(Child(self.tokens.prompt(prompt), fresh=True) for prompt in prompts)
        return Reading("fork", Fork(children, drops=len(turn.ids) - begin))

    def join(self, fork: Fork, results: Sequence[Result], thread: Name) -> Ids:
        parts: list[int] = [self.subs]
        for failed, reached, result in zip(*self._lines(fork), results, strict=True):
            path = self._path(result)
            parts += failed if path is None else (*reached, *path)
        return (*parts, *self.newline, self.end_subs, *self.newline)

    def _lines(self, fork: Fork) -> tuple[list[Ids], list[Ids]]:
        """Of each child, what says that it found nothing, and that it found a path; the node is its own prompt's."""
        nodes = [search_trace.node_of(self.tokens.decode(child.header), self.surface) for child in fork.children]
        failed, reached = (
            [self.tokens.text(search_trace.render_return(i, node, found, self.surface)) for i, node in enumerate(nodes)]
            for found in (False, True)
        )
        return failed, reached

    def _path(self, result: Result) -> Ids | None:
        """The optimal path that a child restated at its end; None when it did not. A spelling that takes more tokens
        than the child wrote cannot be one: the budget holds no more for it."""
        text = search_trace.child_return(self.tokens.decode(result.ids[:-1]), self.surface) if result.closed else None
        ids = () if text is None else self.tokens.text(text)
        return None if text is None or len(ids) > len(result.ids) else ids

    def join_tokens(self, fork: Fork, thread: Name) -> int:
        failed, reached = self._lines(fork)
        frames = sum(max(len(no), len(yes)) for no, yes in zip(failed, reached, strict=True))
        return 2 + 2 * len(self.newline) + frames

    def force_answer(self, response: Ids) -> Ids:
        raise DialectError("a search trace that was cut off has no answer to force")

    def tasks(self, trajectory: Trajectory) -> dict[Name, str]:
        return {}

    def said(self, ids: Ids) -> Ids:
        return ids

    def check(self, trajectory: Trajectory) -> str | None:
        for call in trajectory.calls:
            sampled = trajectory.segments[call.sampled]
            tags = [t for t in sampled.ids if t in (self.calling, self.end_calling, self.subs, self.end_subs)]
            if tags != ([self.calling, self.end_calling] if call.event == "fork" else []):
                return "a tag outside its place"
            if call.event not in ("fork", "kept", "final", "join"):
                return "a search that did not end"
            if sampled.ids.count(self.eos) != (call.event in ("final", "join")):
                return "an eos inside the text"
        return None

    def write(self, demonstration: Demonstration | SearchRun) -> Script:
        if not isinstance(demonstration, SearchRun):
            raise DialectError("dialect apr writes search traces only: use data=countdown_search")
        text, script = self.tokens.text, Script()
        turns: list[Ids] = []
        run = demonstration
        for before, nodes, children in zip(run.turns, run.spawns, run.children, strict=False):
            block = search_trace.render_spawn(nodes, self.surface)
            script |= {(len(turns), k): [(*text(child), self.eos)] for k, child in enumerate(children, 1)}
            turns.append((*text(before), self.calling, *text(block), self.end_calling))
        return script | {(): [*turns, (*text(run.turns[-1]), self.eos)]}
