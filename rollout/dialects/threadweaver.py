"""ThreadWeaver's grammar: outlines, isolated threads, and a join that re-reads their transcript (arXiv 2512.07843).

    <think> text <Parallel><Outlines><Outline>1: task</Outline><Outline>2: task</Outline></Outlines>   the model stops
    \\n<Thread>\\n1:  body \\n</Thread><Thread>\\n2:  body \\n</Thread>           headers forced, bodies sampled at once
    \\n</Parallel> text </think> answer eos                                       </Parallel> forced, the rest sampled

White space between tags is optional in the grammar; demonstrations write none inside `<Parallel>`, because every
token of the outlines lies on the critical path. As in the paper (section 3.2) the client writes `</Parallel>`.
"""

from rollout.dialects.base import Reasoning
from rollout.dialects.tagged import Grammar, Tagged


class ThreadWeaver(Tagged):
    """Flat blocks, numbered outlines 1..n, transcript join."""

    name = "threadweaver"
    grammar = Grammar(
        opens=("<Parallel>", "<Outlines>"),
        item=("<Outline>", "</Outline>"),
        forks="</Outlines>",
        shared="\n",
        header="<Thread>\n{k}:",
        body_end="\n",
        ends="</Thread>",
        join="\n</Parallel>",
        closers=(("<Parallel>", "</Parallel>"),),
    )
    tags = (*Reasoning.tags, *grammar.tags)
