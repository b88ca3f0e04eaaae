r"""NPR's rows, as its rejection sampling writes them: columns `problem`, `reference` and `trajectory`.

    <guideline>\n<plan>1: a</plan>\n<plan>2: b</plan>\n</guideline>\n<step>\n1: c\n</step>\n<step>\n2: d\n</step>
    <takeaway>\ne\n</takeaway>\n\n ... \boxed{4}

Blocks one after the other and nothing around them: what follows the last takeaway is the answer. Of several
trajectories the first is taken; an empty think element before it, of Qwen3's template, is left out.
"""

import re
from collections.abc import Mapping
from typing import Any, cast

from apr_train.corpora.base import Drop, Refused, Worked, boxed, find_text, text_of
from apr_train.corpora.blocks import Markup, tail_of
from apr_train.corpora.chat import turns_of
from rollout.demonstration import Demonstration

MARKUP = Markup(
    opens=("<guideline>",),
    item="plan",
    planned=("</guideline>",),
    thread="step",
    conclusion="takeaway",
)
_EMPTY_THINK = re.compile(r"\s*<think>\s*</think>\s*")


def read(row: Mapping[str, Any]) -> Worked | Drop:
    """A row of `problem`, `reference` and `trajectory` (a text, or a list of texts); or a chat in `text`."""
    try:
        trajectory = row.get("trajectory")
        if isinstance(trajectory, list) and trajectory:
            row = {**row, "trajectory": cast(list[Any], trajectory)[0]}
        response = find_text(row, "trajectory")
        if response is not None:
            question = text_of(row, "problem", "question")
        else:
            question, response = turns_of(text_of(row, "text"))
        response = response.removesuffix("<|im_end|>")
        if empty := _EMPTY_THINK.match(response):
            response = response[empty.end() :]
        reasoning, answer = tail_of(MARKUP.read(response))
        if not reasoning:
            return Drop.NO_BLOCK
        told = boxed(answer)
        reference = find_text(row, "reference") or told
        return Worked(question, reference.strip(), Demonstration(reasoning, answer))
    except Refused as refused:
        return refused.reason
