r"""Multiverse's published rows: a chat in column `text`, or the columns that it was made of.

    <Think> ... <Parallel>\n<Goal>\n<Outline>1: a</Outline>\n<Outline>2: b</Outline>\n</Goal>\n<Path>\n1: c\n</Path>
    <Path>\n2: d <Parallel> ... 2.1: ... </Parallel>\n</Path>\n<Conclusion>\ne\n</Conclusion>\n</Parallel> ... </Think>
    \n\nAnswer: f

Paths may hold blocks of their own, numbered 2.1, 2.2. The two suffixes by which the data asks for parallel or
sequential thinking are taken off the problem, so that the policy decides. The reference is what the answer boxes.
"""

from collections.abc import Mapping
from typing import Any

from apr_train.corpora.base import Drop, Refused, Worked, boxed, find_text, text_of
from apr_train.corpora.blocks import Markup
from apr_train.corpora.chat import thinking_of, turns_of
from rollout.demonstration import Demonstration

SUFFIXES = (" Think step by step and in parallel before answering.", " Think step by step before answering.")
MARKUP = Markup(
    opens=("<Parallel>", "<Goal>"),
    item="Outline",
    planned=("</Goal>",),
    thread="Path",
    conclusion="Conclusion",
    closes=("</Parallel>",),
    nests=True,
    numbers="matching",
)


def read(row: Mapping[str, Any]) -> Worked | Drop:
    """A row of `text`; or of `question`, `deepseek_thinking_trajectory_parallel` and `deepseek_attempt`, which the
    published script joins with an empty line and, where it lacks one, the word `Answer: `."""
    try:
        thinking = find_text(row, "deepseek_thinking_trajectory_parallel")
        if thinking is not None:
            answer = text_of(row, "deepseek_attempt").strip()
            answer = answer if "Answer:" in answer else f"Answer: {answer}"
            question, response = text_of(row, "question"), f"{thinking.strip()}\n\n{answer}"
        else:
            question, response = turns_of(text_of(row, "text", "qwen_text"))
        reasoning, answer = thinking_of(response, "Think")
        if MARKUP.holds(answer):
            return Drop.STRAY_TAG
        for suffix in SUFFIXES:
            question = question.removesuffix(suffix)
        if not question.strip():
            return Drop.NO_PROMPT
        return Worked(question, boxed(answer), Demonstration(MARKUP.read(reasoning), answer))
    except Refused as refused:
        return refused.reason
