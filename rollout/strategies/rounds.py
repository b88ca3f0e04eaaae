"""Rounds of responses that read those of the round before: RSA (arXiv 2509.26626) and PaCoRe (arXiv 2601.05593)."""

from dataclasses import dataclass
from random import Random
from typing import Literal

from rollout.seeds import mix
from rollout.strategies.base import Question, Setting, Solved, StrategyError, filled
from rollout.strategies.graph import Graph, Reply, ends_of
from rollout.strategies.self_consistency import majority

NAME = "rounds"


@dataclass(frozen=True, slots=True)
class RoundsOptions:
    """RSA's population of 16 and 10 rounds, each response reading 4 drawn from the round before; its first round reads
    the problem alone and is one of the 10. `widths` says instead how many responses each round has: PaCoRe's is
    [32, 4, 1] with a `subset` of 32 (all of them) and `shows=answer`, what follows the reasoning.

    Templates are ours: `{problem}`, and `{candidates}`, each under a line of `candidate_template` (`{number}`).
    """

    population: int = 16
    subset: int = 4
    rounds: int = 10
    widths: tuple[int, ...] = ()
    shows: Literal["response", "answer"] = "response"
    template: str = (
        "{problem}\nCandidate solutions, any of which may be wrong:\n{candidates}\n"
        "Use what is right in them and solve the problem."
    )
    candidate_template: str = "Candidate {number}:"

    def __post_init__(self) -> None:
        if min(self.population, self.subset, self.rounds, *self.widths) < 1:
            raise StrategyError(f"strategy {NAME}: population, subset, rounds and widths are 1 or more")


class Rounds:
    """Every round waits for all of the one before; the answer is what most of the last round say."""

    def __init__(self, options: RoundsOptions) -> None:
        self.options = options

    async def solve(self, setting: Setting, question: Question, seed: int) -> Solved:
        options, graph = self.options, Graph(setting, question, NAME)
        widths = options.widths or (options.population,) * options.rounds
        replies = await graph.ask([question.text] * widths[0], mix(seed, 0))
        for number, width in enumerate(widths[1:], start=1):
            finished = [reply for reply in replies if reply.candidate.response]
            if not finished:
                break
            draws = [Random(mix(seed, number, i)) for i in range(width)]
            shown = [draw.sample(finished, min(options.subset, len(finished))) for draw in draws]
            texts = [self._prompt(graph, each) for each in shown]
            replies = await graph.ask(texts, mix(seed, number), ends_of(replies))
        chosen = majority([reply.candidate for reply in replies])
        if chosen is None:
            return graph.unsolved("round without an answer")
        return graph.solved(replies[chosen].candidate.response, replies[chosen].candidate.outcome)

    def _prompt(self, graph: Graph, shown: list[Reply]) -> str:
        """The problem and these candidates."""
        lines: list[str] = []
        for number, reply in enumerate(shown, start=1):
            whole = graph.setting.tokens.decode(reply.candidate.response[:-1])
            text = whole if self.options.shows == "response" else graph.said(reply)
            lines += [filled(self.options.candidate_template, number=str(number)), text]
        return filled(self.options.template, problem=graph.question.text, candidates="\n".join(lines))
