"""Verifies answers by their exact notation: any text, integers as `714` and `12 -7 0`, or a set of them."""

import re

from rewards.verdict import Verdict
from rewards.verify.answer import answer_text

_INTEGERS = re.compile(r"-?[0-9]+(?: -?[0-9]+)*")  # [0-9], because \d takes every script's digits

NO_NUMBER = "none"
"""The empty set."""


class IntegersVerifier:
    """`correct` when the text after </think> is the reference, digit for digit; leading zeros and order count.

    Nothing may stand beside the integers, so that prose, units or a second guess are `unparsable`.
    A reference in another notation is an `error`.

    >>> exact_integers("<think>a345\\nb71\\n</think>51", "51")
    'correct'
    >>> exact_integers("<think></think>51 or 52", "51")
    'unparsable'
    """

    def answer(self, response: str) -> str | None:
        text = answer_text(response)
        return text if text is not None and _INTEGERS.fullmatch(text) else None

    def __call__(self, response: str, reference: str) -> Verdict:
        return _compared(self.answer(response), reference) if _INTEGERS.fullmatch(reference) else "error"


class SetVerifier:
    """`correct` when the text after </think> has the reference's integers, each once, in any order; `none` is the empty
    set. `unparsable` and `error` as for integers. The answer has the shortest ones first.

    >>> exact_set("<think></think>9 7", "7 9"), exact_set("<think></think>7 7 9", "7 9")
    ('correct', 'wrong')
    >>> exact_set.answer("<think></think>10 9")
    '9 10'
    """

    def answer(self, response: str) -> str | None:
        return _in_order(answer_text(response) or "")

    def __call__(self, response: str, reference: str) -> Verdict:
        wanted = _in_order(reference)
        return "error" if wanted is None else _compared(self.answer(response), wanted)


class TextVerifier:
    """`correct` when the text after </think> is the reference, character for character; `unparsable` without one.

    >>> exact_text("<think>a345A5</think>A5", "A5")
    'correct'
    """

    def answer(self, response: str) -> str | None:
        return answer_text(response) or None

    def __call__(self, response: str, reference: str) -> Verdict:
        return _compared(self.answer(response), reference)


def _in_order(numbers: str) -> str | None:
    if numbers == NO_NUMBER:
        return NO_NUMBER
    words = numbers.split(" ") if _INTEGERS.fullmatch(numbers) else []
    return " ".join(sorted(words, key=lambda word: (len(word), word))) or None


def _compared(answer: str | None, reference: str) -> Verdict:
    if answer is None:
        return "unparsable"
    return "correct" if answer == reference else "wrong"


exact_integers, exact_set, exact_text = IntegersVerifier(), SetVerifier(), TextVerifier()
