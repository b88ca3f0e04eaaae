"""ParaThinker's two fixed stages (arXiv 2509.04475) as text: paths of the whole problem, then a summary of them all.

    <think>                                                        forced, before anything is sampled
    <think1> body </think1><think2> body </think2> ...             headers forced, bodies sampled at once
    <summary> summary </summary></think> answer eos                <summary> forced

`first_finish`: all paths end with the first that closes itself. The published model is the stitched join with a learned
vector per path (model.thread_vectors, torch engine); the text alone needs neither.
"""

from dataclasses import dataclass

from rollout.dialects.base import DialectError
from rollout.dialects.tagged import Grammar, Tagged


@dataclass(frozen=True, slots=True)
class ParaThinkerOptions:
    """`paths` of the first stage (the paper: up to 8); `first_finish` cuts them all when the first one ends."""

    paths: int = 4
    first_finish: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.paths <= 16:
            raise DialectError(f"dialect.options.paths={self.paths} must be 1 to 16")


class ParaThinker(Tagged):
    """One block, started by the client."""

    name = "parathinker"
    Options = ParaThinkerOptions

    @classmethod
    def grammar(cls, options: ParaThinkerOptions) -> Grammar:
        return Grammar(
            begins=True,
            forks="<think>",
            threads=options.paths,
            header="<think{k}>",
            ends="</think{k}>",
            join="<summary>",
            concludes=("</summary>",),
            cut=options.first_finish,
            closers=(("<summary>", "</summary>"),),
        )
