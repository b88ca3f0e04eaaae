"""Parason's tags (arXiv 2608.24658): ThreadWeaver's, with two kinds of threads.

    <think> text <Parallel><Outlines><Subtask>1: task</Subtask><Subtask>2: task</Subtask></Outlines>   AND: all are read
    <think> text <Parallel><Outlines><Trial>1: way</Trial><Trial>2: way</Trial></Outlines>       OR: the first is read
    \\n<Thread>\\n1: body\\n</Thread>...\\n</Parallel> text </think> answer eos

A block of trials ends when the first one closes itself, in tokens, not in seconds: its siblings are cut at the same
step, and the parent reads the winner alone. The paper's data could not be read; that a block is of one kind, and what
the parent reads, is ours.
"""

from rollout.dialects.tagged import Grammar, Tagged


class Parason(Tagged):
    """Flat blocks of numbered subtasks (AND) or trials (OR)."""

    name = "parason"

    @classmethod
    def grammar(cls, options: object) -> Grammar:
        return Grammar(
            opens=("<Parallel>", "<Outlines>"),
            items=(("<Subtask>", "</Subtask>"), ("<Trial>", "</Trial>")),
            trial="<Trial>",
            forks="</Outlines>",
            shared="\n",
            header="<Thread>\n{k}:",
            body_end="\n",
            ends="</Thread>",
            join="\n</Parallel>",
            closers=(("<Parallel>", "</Parallel>"),),
        )
