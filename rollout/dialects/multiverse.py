"""Multiverse's tags (arXiv 2506.09991), joined by re-reading the transcript.

    <think> text <Parallel><Goal><Outline>1: task</Outline><Outline>2: task</Outline></Goal>   the model stops
    \\n<Path>\\n1: body </Path>\\n<Path>\\n2: body </Path>      headers forced, bodies sampled at once
    <Conclusion>\\n conclusion </Conclusion></Parallel> text </think> answer eos     <Conclusion> forced

The published engine stitches the paths' caches and restarts positions; that join, and blocks inside paths, are not here
yet. The published reasoning stands in `<Think>`; here in `<think>`, as everywhere.
"""

from rollout.dialects.base import Reasoning
from rollout.dialects.tagged import Grammar, Tagged


class Multiverse(Tagged):
    """Flat blocks, numbered outlines 1..n, a conclusion that the model closes, transcript join."""

    name = "multiverse"
    grammar = Grammar(
        opens=("<Parallel>", "<Goal>"),
        item=("<Outline>", "</Outline>"),
        forks="</Goal>",
        header="\n<Path>\n{k}:",
        ends="</Path>",
        join="<Conclusion>\n",
        concludes=("</Conclusion>", "</Parallel>"),
        closers=(("<Conclusion>", "</Conclusion>"), ("<Parallel>", "</Parallel>")),
    )
    tags = (*Reasoning.tags, *grammar.tags)
