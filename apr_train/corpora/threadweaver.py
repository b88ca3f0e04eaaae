r"""ThreadWeaver's published rows: column `qwen_text`, a chat of Qwen's template with special tokens as text.

    <|im_start|>user\nproblem<|im_end|>\n<|im_start|>assistant\n<think>\n ... <Parallel>\n<Outlines>\n
    <Outline>1: a</Outline>\n<Outline>2: b</Outline>\n</Outlines>\n<Thread>\n1: c\n</Thread><Thread>\n2: d\n</Thread>\n
    </Parallel> ... \n</think>\n\n

then the answer and `<|im_end|>`. Blocks do not nest; the older data ends each with a `<Conclusion>`. The reference is
what the answer boxes: the public files hold no other.
"""

from collections.abc import Mapping
from typing import Any

from apr_train.corpora.base import Drop, Refused, Worked, boxed, text_of
from apr_train.corpora.blocks import Markup
from apr_train.corpora.chat import thinking_of, turns_of
from rollout.demonstration import Demonstration

MARKUP = Markup(
    opens=("<Parallel>", "<Outlines>"),
    item="Outline",
    planned=("</Outlines>",),
    thread="Thread",
    conclusion="Conclusion",
    must_conclude=False,
    closes=("</Parallel>",),
)


def read(row: Mapping[str, Any]) -> Worked | Drop:
    """A row of `qwen_text`, or the reason why it gives no demonstration."""
    try:
        question, response = turns_of(text_of(row, "qwen_text", "text"))
        reasoning, answer = thinking_of(response)
        if MARKUP.holds(answer):
            return Drop.STRAY_TAG
        return Worked(question, boxed(answer), Demonstration(MARKUP.read(reasoning), answer))
    except Refused as refused:
        return refused.reason
