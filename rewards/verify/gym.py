"""Verifies answers by Reasoning Gym's own scorers, in child processes that are killed at a deadline."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rewards.verdict import Verdict
from rewards.verify.answer import answer_text
from rewards.verify.child import ChildError, ChildVerifier, Worker

MAX_CHARACTERS = 16_384
"""Of one answer; the longest reference of the data sets has about 2,000."""
MAX_ENTRY = 1 << 20
MEMORY_BYTES = 1 << 30

RUNS_TEXT = (
    *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication"),
    *("puzzle24", "simple_integration", "spiral_matrix", "string_insertion"),
)
"""Data sets whose scorers run the answer as Python: by `eval`, or by sympy's `parse_expr`, which does."""
TAKES_ANYTHING = {
    "game_of_life_halting": "its scorer takes every text for the answer True",
    "coin_flip": "its scorer takes the first digit of the answer for the whole",
}
"""Data sets whose scorers give 1.0 for wrong answers."""

_OPEN, _CLOSE = "<answer>", "</answer>"


class GymVerifierError(ChildError):
    """reasoning-gym cannot run, or its scorer is not to be trusted with model text. Says what to do."""


def extract(response: str) -> str | None:
    """The answer in a response: what the last <answer> pair holds, else all of it. Searched is the text after
    </think>; a response without any think tag is all answer. None where there is none or more than 16,384 characters.

    >>> extract("<think>1 2</think>It is <answer> 2 1 </answer>."), extract("<think></think>2 1"), extract("<think>2")
    ('2 1', '2 1', None)
    """
    tagged = "<think>" in response or "</think>" in response
    text = answer_text(response) if tagged else response
    if text is None or len(text) > MAX_CHARACTERS:
        return None
    pairs = [before.partition(_OPEN)[2] for before in text.split(_CLOSE)[:-1] if _OPEN in before]
    return (pairs[-1] if pairs else text).strip() or None


class GymVerifier(ChildVerifier):
    """Thread-safe verifier of one data set over `workers` children; a reference is the data set's entry as JSON. The
    answer is the very text that the scorer sees.

    `correct`: the scorer gives `threshold` or more. `unparsable`: no answer, or one at which the scorer raised.
    `timeout`: it took over `deadline_s` seconds. `error`: two children died of it, or the entry is too long.
    `allow` names data sets that RUNS_TEXT and TAKES_ANYTHING would refuse.
    Raises GymVerifierError when reasoning-gym is not installed, for a refused data set, and after `close`.
    """

    def __init__(
        self,
        dataset: str,
        config: Mapping[str, Any],
        threshold: float = 1.0,
        deadline_s: float = 5.0,
        workers: int = 1,
        allow: tuple[str, ...] = (),
    ) -> None:
        if find_spec("reasoning_gym") is None:
            raise GymVerifierError("reasoning-gym is not installed: pip install reasoning-gym==0.1.25")
        if deadline_s <= 0 or workers < 1 or not 0 < threshold <= 1:
            raise GymVerifierError(
                f"deadline_s > 0, workers >= 1, 0 < threshold <= 1 needed, got {deadline_s}, {workers}, {threshold}"
            )
        why = "its scorer runs the answer as Python" if dataset in RUNS_TEXT else TAKES_ANYTHING.get(dataset)
        if why is not None and dataset not in allow:
            raise GymVerifierError(f"data set {dataset} is refused, {why}: data.options.allow=[{dataset}] takes it")
        judge = (str(Path(__file__).with_name("gym_judge.py")), dataset, json.dumps(dict(config)), str(threshold))
        children = [Worker(deadline_s, MEMORY_BYTES, "reasoning-gym", GymVerifierError, judge) for _ in range(workers)]
        super().__init__(deadline_s, children, "reasoning-gym", GymVerifierError)

    def answer(self, response: str) -> str | None:
        return extract(response)

    def _judge(self, response: str, reference: str, deadline_s: float) -> Verdict:
        self._check_open()
        if not 0 < len(reference) <= MAX_ENTRY:
            return "error"
        text = self.answer(response)
        return "unparsable" if text is None else self._ask(text, reference, deadline_s)
