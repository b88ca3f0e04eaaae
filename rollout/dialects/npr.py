"""NPR's tags (arXiv 2512.07461): flat blocks with a takeaway, stitched.

    <think> text <guideline><plan>1: task</plan><plan>2: task</plan></guideline>      the model stops
    \\n<step>\\n1: body </step>    \\n<step>\\n2: body </step>      headers forced, bodies sampled at once
    <takeaway>\\n takeaway </takeaway> text </think> answer eos     <takeaway> forced

The published form has no reasoning tags around its blocks; here they stand in `<think>`, as everywhere. Its trainer and
its engine place steps differently (`apr_train/published.py`).
"""

from rollout.dialects.tagged import Grammar, Tagged


class Npr(Tagged):
    """Flat blocks, numbered plans 1..n, a takeaway that the model closes."""

    name = "npr"
    joins = ("stitched", "transcript")

    @classmethod
    def grammar(cls, options: object) -> Grammar:
        return Grammar(
            opens=("<guideline>",),
            items=(("<plan>", "</plan>"),),
            forks="</guideline>",
            header="\n<step>\n{k}:",
            ends="</step>",
            join="<takeaway>\n",
            concludes=("</takeaway>",),
            closers=(("<takeaway>", "</takeaway>"), ("<guideline>", "</guideline>")),
        )
