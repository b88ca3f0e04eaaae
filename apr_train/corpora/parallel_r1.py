r"""Parallel-R1's published rows (Parallel-GSM8K): columns `problem` and `text`, or verl's parquet made of them.

    ... <Parallel><Path>\na\n</Path><Path>\nb\n</Path></Parallel>\n<Summary>\nc\n</Summary> ...\nFinal Answer: 5

No plan, no numbers, no think element: what stands before the last line `Final Answer:` is the reasoning, the line
itself the answer. In verl's rows the problem is the whole instruction, which spells the six tags; there they are text.
"""

import re
from collections.abc import Mapping
from typing import Any

from apr_train.corpora.base import Drop, Refused, Worked, find_text, text_of
from apr_train.corpora.blocks import Markup, tail_of
from rewards.verify.math import extract
from rollout.demonstration import Demonstration

MARKUP = Markup(
    opens=("<Parallel>",),
    thread="Path",
    joined=("</Parallel>",),
    conclusion="Summary",
    numbers="none",
)
_ANSWER = re.compile(r"^[ *]*Final Answer:", re.MULTILINE)


def read(row: Mapping[str, Any]) -> Worked | Drop:
    """A row of `problem` and `text`; or of `extra_info.question`, `extra_info.answer`, `reward_model.ground_truth`."""
    try:
        question, response = text_of(row, "problem", "extra_info.question"), text_of(row, "text", "extra_info.answer")
        blocks, tail = tail_of(MARKUP.read(response))
        start = max((found.start() for found in _ANSWER.finditer(tail)), default=None)
        told = None if start is None else extract(tail[start:])
        if told is None:
            return Drop.NO_ANSWER
        reasoning = (*blocks, tail[:start]) if tail[:start] else blocks
        reference = find_text(row, "reward_model.ground_truth") or told
        return Worked(question, reference.strip(), Demonstration(reasoning, tail[start:]))
    except Refused as refused:
        return refused.reason
