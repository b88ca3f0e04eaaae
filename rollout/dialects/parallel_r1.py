"""Parallel-R1's tags (arXiv 2509.07980): no plan, a fixed number of paths, a summary.

    <think> text <Parallel>                              the model stops
    <Path> body </Path><Path> body </Path>               headers forced, bodies sampled at once
    </Parallel>\\n<Summary> summary </Summary> text </think> answer eos     up to <Summary> forced

The published engine samples transcripts; "Unseen" trains them stitched and "Seen" as one causal text, neither of which
is what was sampled (`apr_train/published.py`). Either join is exact here.
"""

from dataclasses import dataclass

from rollout.dialects.base import DialectError
from rollout.dialects.tagged import Grammar, Tagged


@dataclass(frozen=True, slots=True)
class Paths:
    """`paths`: how many threads every fork has."""

    paths: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.paths <= 64:
            raise DialectError(f"dialect.options.paths={self.paths} must be 1 to 64")


class ParallelR1(Tagged):
    """Flat blocks of two paths, or as many as the options say, and a summary that the model closes."""

    name = "parallel_r1"
    Options = Paths

    @classmethod
    def grammar(cls, options: Paths) -> Grammar:
        return Grammar(
            forks="<Parallel>",
            threads=options.paths,
            header="<Path>",
            ends="</Path>",
            join="</Parallel>\n<Summary>",
            concludes=("</Summary>",),
            closers=(("<Summary>", "</Summary>"), ("<Parallel>", "</Parallel>")),
        )
