"""The baseline's dialect: one thread, tags are never structure."""

from typing import Literal

from rollout.demonstration import Block, Demonstration
from rollout.dialects.base import DialectError, Reading, Reasoning, Script
from rollout.trajectory import Trajectory


class Sequential(Reasoning):
    """Decodes until the eos. A policy that knows fork tags may write them; here they are words like any other."""

    name = "sequential"

    def stops(self, in_thread: bool) -> tuple[int, ...]:
        return (self.eos,)

    def read(self, ids: tuple[int, ...], finish: Literal["stop", "length"], in_thread: bool) -> Reading:
        return Reading("final" if finish == "stop" else "truncated")

    def fork(self, threads: int) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        raise DialectError("the sequential dialect never forks")

    def close_thread(self, thread: int) -> tuple[int, ...]:
        raise DialectError("the sequential dialect has no threads")

    def join(self) -> tuple[int, ...]:
        raise DialectError("the sequential dialect never joins")

    def force_answer(self, response: list[int]) -> tuple[int, ...]:
        return () if self.end_think in response else (self.end_think,)

    def check(self, trajectory: Trajectory) -> str | None:
        return self.check_reasoning(trajectory.root_ids())

    def write(self, demonstration: Demonstration) -> Script:
        ids = [self.think]
        for piece in demonstration.reasoning:
            if isinstance(piece, Block):
                raise DialectError("a sequential policy cannot be shown a parallel block: set sft.parallel_share=0")
            ids += self.tokens.text(piece)
        return {(): [(*ids, *self.answer(demonstration.answer))]}
