"""Multiverse's tags (arXiv 2506.09991): nested blocks with a conclusion, stitched.

    <think> text <Parallel><Goal><Outline>1: task</Outline><Outline>2: task</Outline></Goal>   the model stops
    \\n<Path>\\n1: body </Path>    \\n<Path>\\n2: body </Path>      headers forced, bodies sampled at once
    <Conclusion>\\n conclusion </Conclusion></Parallel> text </think> answer eos     <Conclusion> forced

A path may hold a block of its own, numbered 1.1, 1.2. The published reasoning stands in `<Think>`; here in `<think>`,
as everywhere. Every newline that the client writes belongs to one path, so that no path sees another's: the published
trainer lets it leak, and places paths a token earlier than the published engine (`apr_train/published.py`).
"""

from rollout.dialects.tagged import Grammar, Tagged


class Multiverse(Tagged):
    """Blocks that nest, numbered outlines, a conclusion that the model closes."""

    name = "multiverse"
    joins = ("stitched", "transcript")

    @classmethod
    def grammar(cls, options: object) -> Grammar:
        return Grammar(
            opens=("<Parallel>", "<Goal>"),
            items=(("<Outline>", "</Outline>"),),
            forks="</Goal>",
            nests=True,
            header="\n<Path>\n{k}:",
            ends="</Path>",
            join="<Conclusion>\n",
            concludes=("</Conclusion>", "</Parallel>"),
            closers=(("<Conclusion>", "</Conclusion>"), ("<Parallel>", "</Parallel>")),
        )
