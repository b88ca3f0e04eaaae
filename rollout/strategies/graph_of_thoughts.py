"""Graph of thoughts (arXiv 2308.09687): split, solve the parts side by side, keep the best of each, aggregate, improve.

Generate: the task's parts -> each part: Generate(branch), Score, KeepBest(1)
-> Aggregate(aggregates), Score, KeepBest(1) -> Improve(improvements), Score, KeepBest(1)
"""

from dataclasses import dataclass
from typing import Literal

from rollout.seeds import mix
from rollout.strategies.base import Ids, Question, Setting, Solved, StrategyError, filled
from rollout.strategies.graph import Graph, Reply, ends_of, split_of
from rollout.trajectory import Outcome

NAME = "graph_of_thoughts"


@dataclass(frozen=True, slots=True)
class GraphOfThoughtsOptions:
    """The paper's sorting of 32 numbers: 5 answers of each part, 10 aggregations, 10 improvements, always the best one
    kept; it splits in 2, here the task's `split` says. Scores are the task's `score`, which sees no gold answer (the
    paper's: errors in order and in counts); without one, the mean probability of the response's tokens.

    `aggregate=model`: the model combines the parts, asked by `aggregate_template` (`{problem}`; `{parts}`, a line
    each); `client`: the task's `merge` does, once, and the client writes the answer. An improvement (`{problem}`,
    `{answer}`) is kept only where it scores higher. Templates are ours.
    """

    branch: int = 5
    aggregate: Literal["model", "client"] = "model"
    aggregates: int = 10
    improvements: int = 10
    aggregate_template: str = "{problem}\nThe parts are solved:\n{parts}\nCombine them into the answer to the whole."
    improve_template: str = "{problem}\nA proposed answer: {answer}\nIt may be wrong. Give the right answer."

    def __post_init__(self) -> None:
        if min(self.branch, self.aggregates) < 1 or self.improvements < 0:
            raise StrategyError(f"strategy {NAME}: branch and aggregates are 1 or more, improvements 0 or more")


@dataclass(frozen=True, slots=True)
class _Whole:
    answer: str
    score: float
    response: Ids
    outcome: Outcome
    ends: tuple[int, ...]
    """What the choice of this answer waited for."""


class GraphOfThoughts:
    """A static graph of operations; each waits for all of the one before."""

    def __init__(self, options: GraphOfThoughtsOptions) -> None:
        self.options = options

    async def solve(self, setting: Setting, question: Question, seed: int) -> Solved:
        options, parts = self.options, split_of(question, NAME)
        by_client = options.aggregate == "client"
        if by_client and (question.merge is None or (question.score is None and options.improvements)):
            missing = "merge: use aggregate=model" if question.merge is None else "score: use improvements=0"
            raise StrategyError(f"strategy {NAME}, aggregate=client: this task has no {missing}")
        graph = Graph(setting, question, NAME)
        replies = await graph.ask([part for part in parts for _ in range(options.branch)], mix(seed, 0))
        rows = [replies[at : at + options.branch] for at in range(0, len(replies), options.branch)]
        kept = [graph.best(part, row) for part, row in zip(parts, rows, strict=True)]
        answers = [each.answer for each in kept if each is not None and each.answer is not None]
        if len(answers) < len(parts):
            return graph.unsolved("part without an answer")
        whole = await self._aggregate(graph, parts, answers, mix(seed, 1), ends_of(replies))
        if whole is None:
            return graph.unsolved("no aggregate")
        text = filled(options.improve_template, problem=question.text, answer=whole.answer)
        better = await graph.ask([text] * options.improvements, mix(seed, 2), whole.ends)
        best = graph.best(question.text, better)
        if best is not None and graph.score(question.text, best) > whole.score:
            return graph.solved(best.candidate.response, best.candidate.outcome)
        return graph.solved(whole.response, whole.outcome)

    async def _aggregate(
        self, graph: Graph, parts: list[str], answers: list[str], seed: int, after: tuple[int, ...]
    ) -> _Whole | None:
        """The whole answer out of those of the parts; None when no response that combines them finished."""
        question, options = graph.question, self.options
        if options.aggregate == "client" and question.merge is not None:
            merged = question.merge(answers)
            score = 0.0 if question.score is None else question.score(question.text, merged)
            response, written = graph.write(merged, after)
            return _Whole(merged, score, response, "answered", written)
        lines = "\n".join(f"{part} {answer}" for part, answer in zip(parts, answers, strict=True))
        text = filled(options.aggregate_template, problem=question.text, parts=lines)
        replies = await graph.ask([text] * options.aggregates, seed, after)
        best: Reply | None = graph.best(question.text, replies)
        if best is None or best.answer is None:
            return None
        score = graph.score(question.text, best)
        return _Whole(best.answer, score, best.candidate.response, best.candidate.outcome, ends_of(replies))
