"""Skeleton of thought (arXiv 2307.15337): a short list of points first, then all points written out side by side."""

import re
from dataclasses import dataclass
from typing import Literal

from rollout.seeds import mix
from rollout.strategies.base import Question, Setting, Solved, StrategyError, filled
from rollout.strategies.graph import Graph, ends_of, split_of

NAME = "skeleton_of_thought"
_POINT = re.compile(r"^[ \t]*([0-9]{1,3})[ \t]*[.:)][ \t]*(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SkeletonOfThoughtOptions:
    """The paper's 3 to 10 points of 3 to 5 words, each written out in 1 to 2 sentences. Templates are ours:
    `{problem}`, `{least}`, `{most}`; and for a point `{skeleton}`, `{number}`, `{point}`. The paper puts the words
    "1. point" into the model's mouth; here they are in the prompt, and the client writes the numbers.

    `skeleton=task`: the points are the parts that the task splits the problem into, each solved as a problem of its
    own, and the task's `merge` puts the answers together (without it, they are joined by newlines).
    """

    skeleton: Literal["model", "task"] = "model"
    least: int = 3
    most: int = 10
    skeleton_template: str = (
        "{problem}\nGive only a skeleton of the answer: {least} to {most} numbered points, one a line, of 3 to 5 words."
    )
    point_template: str = (
        "{problem}\nIts skeleton:\n{skeleton}\nWrite out point {number} alone, in 1 or 2 sentences: {point}"
    )

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise StrategyError(f"strategy {NAME} needs 1 <= least <= most, got {self.least} and {self.most}")


class SkeletonOfThought:
    """The client writes the answer that is judged, out of the points' answers."""

    def __init__(self, options: SkeletonOfThoughtOptions) -> None:
        self.options = options

    async def solve(self, setting: Setting, question: Question, seed: int) -> Solved:
        graph, options, after = Graph(setting, question, NAME), self.options, ()
        if options.skeleton == "task":
            texts = split_of(question, NAME)
        else:
            slots = {"problem": question.text, "least": str(options.least), "most": str(options.most)}
            (skeleton,) = await graph.ask([filled(options.skeleton_template, **slots)], mix(seed, 0))
            if not skeleton.candidate.response:
                return graph.unsolved("skeleton did not finish", skeleton.candidate.outcome)
            texts, after = self._points(graph, graph.said(skeleton)), skeleton.ends
            if not texts:
                return graph.unsolved("skeleton without points", "malformed")
        replies = await graph.ask(texts, mix(seed, 1), after)
        if options.skeleton == "task":
            answers = [reply.answer for reply in replies if reply.answer is not None]
        else:  # a point is prose
            answers = [graph.said(reply) for reply in replies if reply.candidate.response]
        if len(answers) < len(replies):
            return graph.unsolved("part without an answer")
        response, _ = graph.write(self._whole(question, answers), ends_of(replies))
        return graph.solved(response, "answered")

    def _points(self, graph: Graph, skeleton: str) -> list[str]:
        """The prompts of the points that a skeleton lists, at most `most`."""
        points = _POINT.findall(skeleton)[: self.options.most]
        slots = {"problem": graph.question.text, "skeleton": skeleton}
        return [
            filled(self.options.point_template, number=number, point=point.strip(), **slots) for number, point in points
        ]

    def _whole(self, question: Question, answers: list[str]) -> str:
        if self.options.skeleton == "task":
            return "\n".join(answers) if question.merge is None else question.merge(answers)
        return "\n".join(f"{number}. {answer}" for number, answer in enumerate(answers, start=1))
