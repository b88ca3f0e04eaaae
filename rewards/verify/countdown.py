"""Verifies Countdown expressions by walking their syntax tree with exact rationals; nothing is ever evaluated."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Expression:
    text: str
    """Without blanks."""
    value: Fraction | None
    """Exact; None where it divides by zero."""
    used: list[int]


class CountdownVerifier:
    """`correct` when the expression after </think> has the target's value and uses every given number exactly once.

    The reference is `<target> from <numbers>`. Only + - * /, parentheses and plain integers are an expression; a sign,
    a power, an equation or a second expression is `unparsable`. Values between may be fractions or negative. The answer
    is the expression without its blanks: two that compute the same in other ways are two.

    >>> countdown("<think></think>(53-22)*2", "62 from 22 2 53"), countdown("<think></think>31*2", "62 from 22 2 53")
    ('correct', 'wrong')
    >>> countdown.answer("<think></think>(53 - 22) * 2")
    '(53-22)*2'
    """

    def answer(self, response: str) -> str | None:
        found = _read(answer_text(response))
        return None if found is None else found.text

    def __call__(self, response: str, reference: str) -> Verdict:
        asked = _REFERENCE.fullmatch(reference)
        if asked is None:
            return "error"
        target, numbers = int(asked[1]), sorted(int(number) for number in asked[2].split())
        found = _read(answer_text(response))
        if found is None:
            return "unparsable"
        return "correct" if found.value == target and sorted(found.used) == numbers else "wrong"


countdown = CountdownVerifier()


def _read(text: str | None) -> _Expression | None:
    if text is None or len(text) > MAX_CHARACTERS or not _ALPHABET.fullmatch(text):
        return None
    used: list[int] = []
    try:
        value = _value(ast.parse(text, mode="eval").body, used)
    except (SyntaxError, RecursionError, MemoryError):  # MemoryError: the parser's word for "nested too deeply"
        return None
    return _Expression(text.replace(" ", ""), value, used)


def _value(node: ast.expr, used: list[int]) -> Fraction | None:
    """The exact value, None where it divides by zero; collects the literals. SyntaxError for anything but the four
    operators and integers."""
    match node:
        case ast.Constant(value=int(literal)):
            used.append(literal)
            return Fraction(literal)
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            values = _value(left, used), _value(right, used)
            if values[0] is None or values[1] is None or (isinstance(op, ast.Div) and not values[1]):
                return None
            return _OPERATORS[type(op)](values[0], values[1])
        case _:
            raise SyntaxError(f"{type(node).__name__} is no part of a Countdown expression")
