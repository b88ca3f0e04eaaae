"""Verifies answers by their exact notation: any text, integers as `714` and `12 -7 0`, or a set of them."""

import re

from rewards.verdict import Verdict
from rewards.verify.answer import answer_text

_INTEGERS = re.compile(r"-?[0-9]+(?: -?[0-9]+)*")  # [0-9], because \d takes every script's digits

NO_NUMBER = "none"
"""The empty set."""


def exact_integers(response: str, answer: str) -> Verdict:
    """`correct` when the text after </think> is the reference, digit for digit; leading zeros and order count.

    Nothing may stand beside the integers, so that prose, units or a second guess are `unparsable`.
    A reference in another notation is an `error`.

    >>> exact_integers("<think>a345\\nb71\\n</think>51", "51")
    'correct'
    >>> exact_integers("<think></think>51 or 52", "51")
    'unparsable'
    """
    if not _INTEGERS.fullmatch(answer):
        return "error"
    text = answer_text(response)
    if text is None or not _INTEGERS.fullmatch(text):
        return "unparsable"
    return "correct" if text == answer else "wrong"


def exact_set(response: str, answer: str) -> Verdict:
    """`correct` when the text after </think> has the reference's integers, each once, in any order; `none` is the empty
    set. `unparsable` and `error` as for `exact_integers`.

    >>> exact_set("<think></think>9 7", "7 9"), exact_set("<think></think>7 7 9", "7 9")
    ('correct', 'wrong')
    """
    if answer != NO_NUMBER and not _INTEGERS.fullmatch(answer):
        return "error"
    text = answer_text(response)
    if text is None or not (text == NO_NUMBER or _INTEGERS.fullmatch(text)):
        return "unparsable"
    return "correct" if sorted(text.split(" ")) == sorted(answer.split(" ")) else "wrong"


def exact_text(response: str, answer: str) -> Verdict:
    """`correct` when the text after </think> is the reference, character for character; `unparsable` without one.

    >>> exact_text("<think>a345A5</think>A5", "A5")
    'correct'
    """
    text = answer_text(response)
    if not text:
        return "unparsable"
    return "correct" if text == answer else "wrong"
