"""Parallel-R1's tags (arXiv 2509.07980): no plan, two paths, a summary; the join re-reads the transcript.

<think> text <Parallel>                              the model stops
<Path> body </Path><Path> body </Path>               headers forced, bodies sampled at once
</Parallel>\\n<Summary> summary </Summary> text </think> answer eos     up to <Summary> forced
"""

from rollout.dialects.base import Reasoning
from rollout.dialects.tagged import Grammar, Tagged


class ParallelR1(Tagged):
    """Flat blocks of two paths, a summary that the model closes, transcript join."""

    name = "parallel_r1"
    grammar = Grammar(
        opens=("<Parallel>",),
        forks="<Parallel>",
        threads=2,
        header="<Path>",
        ends="</Path>",
        join="</Parallel>\n<Summary>",
        concludes=("</Summary>",),
        closers=(("<Summary>", "</Summary>"), ("<Parallel>", "</Parallel>")),
    )
    tags = (*Reasoning.tags, *grammar.tags)
