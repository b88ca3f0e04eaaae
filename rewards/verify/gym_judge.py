"""The judge of Reasoning Gym's data sets, for the child process: an answer and an entry as JSON to a verdict.

Loaded as a file by math_worker.py; imports only reasoning-gym. Its scorers are meant for friendly text: they raise, and
some run the text as Python (see gym.py, which refuses those).
"""

import json
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

ROUNDING = 1e-9
TUPLES = ("arc_agi", "rearc")
"""Data sets that compare tuples of their metadata, which JSON makes lists."""
_NO_NUMBER = re.compile(r"nan|inf", re.IGNORECASE)


def load(name: str, config: str, threshold: str) -> Callable[[str, str], str]:
    """A function of (answer, entry) to a verdict. `config`: the data set's settings as JSON."""
    factory: Any = import_module("reasoning_gym.factory")
    dataset: Any = factory.create_dataset(name, **(json.loads(config) | {"seed": 0, "size": 1}))
    least = float(threshold) - ROUNDING

    def judge(answer: str, gold: str) -> str:
        entry = json.loads(gold)
        if name in TUPLES:
            entry["metadata"] = tupled(entry["metadata"])
        expected = entry["answer"]
        if expected is not None and _NO_NUMBER.search(answer) and not _NO_NUMBER.search(str(expected)):
            return "wrong"  # nan is as near to every number as can be, in more than one scorer
        try:
            score = float(dataset.score_answer(answer, entry))
        except MemoryError:
            raise
        except Exception:  # scorers of model text may raise anything, and it is always the text
            return "unparsable"
        return "correct" if least <= score <= 1 + ROUNDING else "wrong"

    return judge


def tupled(value: Any) -> Any:
    """Lists become tuples, all the way down."""
    if isinstance(value, list):
        return tuple(tupled(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {key: tupled(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return value
