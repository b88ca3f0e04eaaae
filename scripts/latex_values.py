"""A small reader of LaTeX answers, independent of math-verify, that says whether two of them differ.

Both sides are evaluated in floating point, with a number in place of every variable. What it cannot read it calls None,
and who needs certainty leaves that pair out.
"""

import cmath
import math
import re
from collections.abc import Callable
from hashlib import blake2b

Value = complex | tuple[str, tuple["Value", ...]]
"""A number, or ("set" | "(" ")" and other pairs of brackets, members)."""

_NOISE = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\\q?quad|\\displaystyle|\$|~|\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\%|%"
)
_UNITS = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{[^{}]*\}(?:\^\{?[0-9]\}?)?")
_TOKEN = re.compile(
    r"\s*([0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\\[a-zA-Z]+|\\.|.)", re.DOTALL
)
THOUSANDS = re.compile(r"(?<![0-9,.])([0-9]{1,3})((?:,\s*[0-9]{3})+)(?![0-9,])")
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    **{rf"\{name}": getattr(cmath, name) for name in ("sin", "cos", "tan", "exp", "sqrt")},
    r"\cot": lambda x: 1 / cmath.tan(x),
    r"\arcsin": cmath.asin,
    r"\ln": cmath.log,
    r"\log": cmath.log10,
}


class _Unread(Exception):
    """This is not in the little grammar."""


def differs(one: str, other: str) -> bool | None:
    """Whether two answers are different mathematics (or words); None where that cannot be told.

    >>> differs("1/2", "0.5"), differs("(1,2)", "(2,1)"), differs("1,2", "2,1"), differs("cat", r"\\text{dog}")
    (False, True, False, True)
    """
    words = [_words(text) for text in (one, other)]
    if words[0] == words[1]:
        return False
    try:
        values = [read(text) for text in (one, other)]
    except (_Unread, ArithmeticError, ValueError, RecursionError):
        plain = [bool(re.fullmatch(r"\s*(?:\\text\s*\{[^{}]*\}|[A-Za-z]{2,})\s*", text)) for text in (one, other)]
        return True if all(plain) else None
    return not _same(values[0], values[1])


def _words(text: str) -> str:
    return re.sub(r"\\text|\\mbox|[\s{}$]", "", text).casefold()


def _same(one: Value, other: Value) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        (kind, left), (kind_2, right) = one, other
        if kind != kind_2 or len(left) != len(right):
            return False
        if kind != "set":
            return all(map(_same, left, right))
        rest = list(right)
        for value in left:
            found = next((k for k, each in enumerate(rest) if _same(value, each)), None)
            if found is None:
                return False
            rest.pop(found)
        return True
    if isinstance(one, tuple) or isinstance(other, tuple):
        return False
    return one == other or abs(one - other) <= 1e-9 * max(abs(one), abs(other))


def read(text: str) -> Value:
    """The value of an answer. Of `x = 5` the right side; of `a, b` a set; `\\pm` gives a set of two."""
    text = _UNITS.sub(" ", _NOISE.sub(" ", text).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac"))
    text = THOUSANDS.sub(lambda found: found[1] + re.sub(r"[,\s]", "", found[2]), text.strip()).rstrip(". ")
    if text.startswith(r"\{") and text.endswith(r"\}"):
        text = text[2:-2]
    members = [each for part in split(text) for each in _signs(part)]
    values: list[Value] = []
    for value in map(_member, members):
        if not any(_same(value, each) for each in values):
            values.append(value)
    return values[0] if len(values) == 1 else ("set", tuple(values))


def split(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts, depth, start = list[str](), 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _signs(text: str) -> list[str]:
    return [text.replace(r"\pm", sign) for sign in "+-"] if r"\pm" in text else [text]


def _member(text: str) -> Value:
    text = text.rpartition("=")[2].strip()
    pieces = split(text[1:-1]) if text[:1] in ("(", "[") and text[-1:] in (")", "]") else []
    if len(pieces) > 1:
        return text[0] + text[-1], tuple(_member(piece) for piece in pieces)
    return _Reader(text).whole()


class _Reader:
    """Recursive descent over one expression."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = _TOKEN.findall(text)
        self._at = 0

    def whole(self) -> complex:
        value = self._sum()
        if self._next():
            raise _Unread
        return value

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._next()
        if not token or (wanted and token not in wanted):
            raise _Unread
        self._at += 1
        return token

    def _sum(self) -> complex:
        value: complex = 0
        first = True
        while first or self._next() in ("+", "-"):
            sign = 1
            while self._next() in ("+", "-"):
                sign *= -1 if self._take() == "-" else 1
            value += sign * self._product()
            first = False
        return value

    def _product(self) -> complex:
        value = self._power()
        while token := self._next():
            if token in ("*", r"\cdot", r"\times"):
                self._take()
                value *= self._power()
            elif token in ("/", r"\div"):
                self._take()
                value /= self._power()
            elif token[0].isalnum() or token[0] == "." or token in "([{" or token in _BEGIN or token in _FUNCTIONS:
                value *= self._power()
            else:
                break
        return value

    def _power(self) -> complex:
        value = self._base()
        while self._next() in ("^", "!"):
            value = value ** self._group() if self._take() == "^" else math.gamma(_real(value) + 1)
        return value

    def _group(self) -> complex:
        """What follows a command or ^: braces, or one token (of a number, one digit)."""
        token = self._next()
        if token == "-":
            self._take()
            return -self._group()
        if token[:1].isdigit() and len(token) > 1:
            self._tokens[self._at] = token[1:]
            return float(token[0])
        return self._base()

    def _base(self) -> complex:
        token = self._take()
        if token in _PAIRS:
            value = self._sum()
            self._take(_PAIRS[token])
            floors = {r"\lfloor": math.floor, r"\lceil": math.ceil}
            return floors[token](_real(value)) if token in floors else value
        if token[0].isdigit() or token[0] == ".":
            if self._next() == "_":
                self._take()
                return int(token, int(_real(self._group())))
            return float(token)
        if token in (r"\frac", r"\binom"):
            above, below = self._group(), self._group()
            return above / below if token == r"\frac" else _binomial(_real(above), _real(below))
        if token == r"\sqrt" and self._next() == "[":
            self._take()
            degree = self._sum()
            self._take("]")
            return self._group() ** (1 / degree)
        if token in _FUNCTIONS:
            return self._function(token)
        return self._name(token)

    def _function(self, token: str) -> complex:
        power: complex = 1
        base: complex | None = None
        while self._next() in ("^", "_"):
            if self._take() == "^":
                power = self._group()
            else:
                base = self._group()
        inside = self._group() if token == r"\sqrt" or self._next() in ("{", "(") else self._power()
        value = _FUNCTIONS[token](inside)
        return (value if base is None else cmath.log(inside) / cmath.log(base)) ** power

    def _name(self, token: str) -> complex:
        if token == r"\pi":
            return math.pi
        if token == r"\infty":
            return 1e30
        if token in ("e", "i"):
            return math.e if token == "e" else 1j
        if not (token.isalpha() or token in _BEGIN):
            raise _Unread
        while self._next() in ("_", "'"):
            token += self._take()
            if token[-1] == "_":
                token += str(self._group())
        return 1.5 + blake2b(token.encode(), digest_size=1).digest()[0] / 173


_PAIRS = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_GREEK = ("alpha", "beta", "gamma", "tau", "omega", "theta", "lambda", "rho", "sigma", "zeta", "Delta", "hbar", "infty")
_BEGIN = {r"\frac", r"\binom", r"\pi", r"\lfloor", r"\lceil", *(rf"\{name}" for name in _GREEK)}


def _real(value: complex) -> float:
    if abs(complex(value).imag) > 1e-12:
        raise _Unread
    return complex(value).real


def _binomial(n: float, k: float) -> float:
    return math.gamma(n + 1) / math.gamma(k + 1) / math.gamma(n - k + 1)
