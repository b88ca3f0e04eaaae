"""Verifies Countdown expressions by walking their syntax tree with exact rationals; nothing is ever evaluated."""

import ast
import re
from collections.abc import Callable
from fractions import Fraction

from rewards.verdict import Verdict
from rewards.verify.answer import answer_text

MAX_CHARACTERS = 200
"""Four numbers need about 30; the limit bounds parsing time and depth."""

_ALPHABET = re.compile(r"[0-9+\-*/() ]+")
_REFERENCE = re.compile(r"([0-9]+) from ([0-9]+(?: [0-9]+)*)")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: Fraction.__add__,
    ast.Sub: Fraction.__sub__,
    ast.Mult: Fraction.__mul__,
    ast.Div: Fraction.__truediv__,
}


def countdown(response: str, answer: str) -> Verdict:
    """`correct` when the expression after </think> has the target's value and uses every given number exactly once.

    `answer` is `<target> from <numbers>`. Only + - * /, parentheses and plain integers are an expression; a sign, a
    power, an equation or a second expression is `unparsable`. Values between may be fractions or negative.

    >>> countdown("<think></think>(53-22)*2", "62 from 22 2 53")
    'correct'
    >>> countdown("<think></think>31*2", "62 from 22 2 53")
    'wrong'
    """
    reference = _REFERENCE.fullmatch(answer)
    if reference is None:
        return "error"
    target, numbers = int(reference[1]), sorted(int(number) for number in reference[2].split())
    text = answer_text(response)
    if text is None or len(text) > MAX_CHARACTERS or not _ALPHABET.fullmatch(text):
        return "unparsable"
    used: list[int] = []
    try:
        value = _value(ast.parse(text, mode="eval").body, used)
    except (SyntaxError, RecursionError, MemoryError):  # MemoryError: the parser's word for "nested too deeply"
        return "unparsable"
    except ZeroDivisionError:
        return "wrong"
    return "correct" if value == target and sorted(used) == numbers else "wrong"


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """The exact value; collects the literals. SyntaxError for anything but the four operators and integers."""
    match node:
        case ast.Constant(value=int(literal)):
            used.append(literal)
            return Fraction(literal)
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, used), _value(right, used))
        case _:
            raise SyntaxError(f"{type(node).__name__} is no part of a Countdown expression")
