"""Samples with the fields that a test cares about."""

from dataclasses import replace
from typing import Any

from apr_train.evaluation.samples import Sample

PLAIN = Sample(
    *("p", 0, 2, None, None, "correct", "answered", None, "7"),
    *(100, 200, 300, 0, 0, 0, 0, 0, 0.0, -0.5, ()),
)


def sample(problem: str = "p", number: int = 0, **fields: Any) -> Sample:
    """L_total is twice L_critical unless said; `correct` gives the verdict, with an answer of its own when wrong."""
    correct = fields.pop("correct", True)
    verdict = {True: "correct", False: "wrong", None: "timeout"}[correct]
    if "l_critical" in fields:
        fields.setdefault("l_total", 2 * fields["l_critical"])
    if not correct:
        fields.setdefault("answer", f"no {number}")
    return replace(PLAIN, problem_id=problem, number=number, verdict=verdict, **fields)
