"""The baseline: one thread, tags are never structure."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rollout.demonstration import Block, Demonstration
from rollout.dialects.base import (
    NO_SETTINGS,
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
    told,
)
from rollout.dialects.tagged import NoOptions
from rollout.options import read_options
from rollout.search_trace import SearchRun
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory


class Sequential(Reasoning):
    """`<think>` reasoning `</think>` answer."""

    name: ClassVar[str] = "sequential"
    joins: ClassVar[tuple[Join, ...]] = ("transcript",)

    @classmethod
    def tags(cls, options: Mapping[str, Any] = NO_SETTINGS) -> tuple[str, ...]:
        read_options("dialect sequential", NoOptions, options, DialectError)
        return cls.think_tags

    def __init__(self, tokens: Tokens, join: Join | None = None, options: Mapping[str, Any] = NO_SETTINGS) -> None:
        super().__init__(tokens)
        self.join_rule: Join = join or self.joins[0]
        self.tag_ids = frozenset((self.think, self.end_think))

    def stops(self, thread: Name) -> Ids:
        return (self.eos,)

    def read(self, turn: Turn) -> Reading:
        return Reading("final" if turn.finish == "stop" else "truncated")

    def join(self, fork: Fork, results: Sequence[Result], thread: Name) -> Ids:
        raise DialectError("the sequential dialect never forks")

    def join_tokens(self, fork: Fork, thread: Name) -> int:
        raise DialectError("the sequential dialect never forks")

    def force_answer(self, response: Ids) -> Ids:
        return () if self.end_think in response else (self.end_think,)

    def check(self, trajectory: Trajectory) -> str | None:
        return self.check_reasoning(trajectory.root_ids()) or self.check_outcome(trajectory)

    def write(self, demonstration: Demonstration | SearchRun) -> Script:
        ids = [self.think]
        plain = told(demonstration, self.name)
        for piece in plain.reasoning:
            if isinstance(piece, Block):
                raise DialectError("a sequential policy cannot be shown a parallel block: set sft.parallel_share=0")
            ids += self.tokens.text(piece)
        return {(): [(*ids, *self.answer(plain.answer))]}
