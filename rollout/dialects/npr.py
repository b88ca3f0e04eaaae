"""NPR's tags (arXiv 2512.07461), joined by re-reading the transcript.

    <think> text <guideline><plan>1: task</plan><plan>2: task</plan></guideline>      the model stops
    \\n<step>\\n1: body </step>\\n<step>\\n2: body </step>        headers forced, bodies sampled at once
    <takeaway>\\n takeaway </takeaway> text </think> answer eos     <takeaway> forced

The published engine stitches the steps' caches and restarts positions; that join is not here yet. The published form has
no reasoning tags around its blocks; here they stand in `<think>`, as everywhere.
"""

from rollout.dialects.base import Reasoning
from rollout.dialects.tagged import Grammar, Tagged


class Npr(Tagged):
    """Flat blocks, numbered plans 1..n, a takeaway that the model closes, transcript join."""

    name = "npr"
    grammar = Grammar(
        opens=("<guideline>",),
        item=("<plan>", "</plan>"),
        forks="</guideline>",
        header="\n<step>\n{k}:",
        ends="</step>",
        join="<takeaway>\n",
        concludes=("</takeaway>",),
        closers=(("<takeaway>", "</takeaway>"), ("<guideline>", "</guideline>")),
    )
    tags = (*Reasoning.tags, *grammar.tags)
