"""What math-verify misreads in an answer: notation put right before it, and agreements that it must not be believed."""

import re
from fractions import Fraction

MAX_EXPONENT = 400
"""Of a power of ten that is still computed exactly; greater ones are left to the child process."""
PLACES = 5
"""After the point, one less than math-verify rounds to: a longer decimal may be right for what it only comes near."""
NEAR = Fraction(1, 100_000)
"""math-verify rounds to six decimals. Two plain numbers further apart than this part of them are different."""

_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|\\?\$")
_SCIENTIFIC = re.compile(r"(?<![A-Za-z0-9._{])(-?[0-9]*\.?[0-9]+)[eE]([-+]?[0-9]{1,512})(?![A-Za-z0-9._])")
_INDEXED_E = re.compile(r"(?<![A-Za-z\\])([Ee])(?=_)")
_BARE_POINT = re.compile(r"([0-9])\.(?![0-9])")
_MIXED = re.compile(r"(?<![0-9.,/])([0-9]+) +([0-9]+)/([0-9]+)(?![0-9.,/])")
_NUMBER = re.compile(r"(-?)([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")
_POWER = re.compile(r"(.*[0-9])(?:\\times|\\cdot|\*|x)10\^\{?(-?[0-9]{1,4})\}?")
_FRACTION = re.compile(r"(-?)(?:\\[dt]?frac(?:\{([0-9]+)\}|([0-9]))(?:\{([0-9]+)\}|([0-9]))|([0-9]+)/([0-9]+))")
_LISTED = re.compile(r",(?:\s|\\,)|(?:\s|\\,),")
_BASE = re.compile(r"\(?[0-9A-Za-z]+\)?_\{?([0-9]+)\}?")
_WORDS = re.compile(r"\\(?:text|mbox|mathrm|textbf|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+")
_LONE = re.compile(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])")
_RELATION = re.compile(r"[<>]|\\(?:l|g)(?:e|t|eq|eqslant)(?![a-z])|\\neq?(?![a-z])|\\in(?![a-z])")
_CONSTANTS = frozenset("ei")
_DROPPED = frozenset("cdghlmost")
"""Letters that math-verify takes for units and drops: `6m` would be 6."""


def tidy(text: str) -> str:
    r"""The same answer in notation that math-verify reads as it is meant. For references and answers alike.

    Delimiters of mathematics go; `4.5e33` (which would be 4.5 times e times 33) becomes a power of ten; `1./3`, `3 1/2`
    and `np.arcsin` their LaTeX; a percent sign (which would begin a comment) is escaped; a closing full stop goes, and
    a closing backslash, which is half of `\ ` or `\.` and would escape the bracket of a box around it.
    `E_{1}` (which would be lost, because E is a constant) is a variable of another name. Fractions of every size are
    `\frac`, white space is single blanks.

    >>> tidy("4.5e-33"), tidy("69$,$84"), tidy("-1./3"), tidy("3 1/2"), tidy("62.5%")
    ('4.5\\times 10^{-33}', '69 , 84', '-1/3', '3\\frac{1}{2}', '62.5\\%')
    """
    text = _DELIMITERS.sub(" ", text).strip().removesuffix(".").rstrip()
    while (len(text) - len(text.rstrip("\\"))) % 2:
        text = text[:-1].rstrip()
    text = _INDEXED_E.sub(lambda found: r"\Xi " if found[0] == "E" else r"\xi ", text)
    text = _SCIENTIFIC.sub(lambda found: rf"{found[1]}\times 10^{{{int(found[2])}}}", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", _BARE_POINT.sub(r"\1", text))
    text = re.sub(r"(?<!\\)%", r"\\%", re.sub(r"\bnp\.(?=[a-z])", r"\\", text))
    return " ".join(text.split())


def number(text: str) -> Fraction | None:
    r"""The value of a plain number, exactly: digits, a decimal, a fraction of two integers, times at most one
    power of ten: the value has at most MAX_EXPONENT digits more than the text.

    >>> number("1,250"), number(r"\frac{1}{2}"), number(r"5\times 10^{-3}"), number("2x")
    (Fraction(1250, 1), Fraction(1, 2), Fraction(1, 200), None)
    """
    text = re.sub(r"\\[!,]\s*|(?<=,)\s+", "", text.strip())
    if re.search(r"[0-9]\s+[0-9]", text):
        return None
    text = re.sub(r"\s", "", text)
    scale = Fraction(1)
    if found := _POWER.fullmatch(text):
        if abs(int(found[2])) > MAX_EXPONENT:
            return None
        text, scale = found[1], Fraction(10) ** int(found[2])
    if found := _FRACTION.fullmatch(text):
        above, below = (digits for digits in found.groups()[1:] if digits)
        return None if int(below) == 0 else scale * Fraction(int(f"{found[1]}{above}"), int(below))
    if found := _NUMBER.fullmatch(text):
        return scale * Fraction(found[0].replace(",", ""))
    return None


def one_spelling(text: str, most: int) -> str:
    r"""A plain number in lowest terms where that takes at most `most` characters; any other text tidy.

    math-verify rounds a decimal to six places, a fraction not at all: 0.333333 is right for a third, 333333/1000000 is
    not. So a decimal (or a number with a power of ten) of more than PLACES places is spelt as it was written, and is
    no fraction; what is shorter is one number however it is written, and `told` says how it is judged. What has a
    blank or `\,` beside a comma is a list; `\!` alone is within a number.

    >>> [one_spelling(text, 512) for text in (r"\dfrac{2}{4}", "0.50", "5e-1", "1,250", "1, 250", "x  +1")]
    ['1/2', '1/2', '1/2', '1250', '1, 250', 'x +1']
    >>> one_spelling("0.333333", 512), one_spelling("333333/1000000", 512)
    ('0.333333', '333333/1000000')
    """
    text = tidy(text)
    value = None if _LISTED.search(re.sub(r"\\!\s*", "", text)) else number(text)
    if value is None or (("." in text or "^" in text) and not _short(value)):
        return text
    spelling = str(value)
    return spelling if len(spelling) <= most else text


def _short(value: Fraction) -> bool:
    """Whether PLACES digits after the point say all of it."""
    return 10**PLACES % value.denominator == 0


def told(text: str) -> str:
    """What math-verify is told for a spelling: a number that PLACES digits after the point say, as that decimal, which
    it compares to six places. Any other text as it is.

    >>> told("1/2"), told("-707/500"), told("1/3"), told("7")
    ('0.5', '-1.414', '1/3', '7')
    """
    value = number(text)
    if value is None or value.denominator == 1 or not _short(value):
        return text
    whole, part = divmod(abs(value.numerator) * (10**PLACES // value.denominator), 10**PLACES)
    return f"{'-' if value < 0 else ''}{whole}.{part:0{PLACES}d}".rstrip("0")


def variables(answer: str, gold: str) -> tuple[str, str]:
    r"""Both texts with another name for each letter that math-verify would drop as a unit, where both have it: there it
    is a variable, or the same unit, and is compared.

    >>> variables(r"\frac{37 m}{4}", r"\frac{37}{4} m"), variables("5 m", "5")
    (('\\frac{37 x_{909}}{4}', '\\frac{37}{4} x_{909}'), ('5 m', '5'))
    """
    for letter in sorted(_DROPPED & _lone(_WORDS.sub(" ", answer)) & _lone(_WORDS.sub(" ", gold))):
        alone = re.compile(rf"(?<![A-Za-z\\]){letter}(?![A-Za-z_])")
        counts = [(len(alone.findall(text)), _WORDS.sub(" ", text).count(letter)) for text in (answer, gold)]
        if all(lone == every for lone, every in counts):
            name = f"x_{{{800 + ord(letter)}}}"
            answer, gold = alone.sub(name, answer), alone.sub(name, gold)
    return answer, gold


def settles(answer: str, gold: str, agreed: bool) -> bool:
    r"""Whether an answer is right, after math-verify has said so (`agreed`) or not. Both texts are tidy.

    Two plain numbers are compared exactly: right when equal, and near ones (see NEAR) as math-verify says. Otherwise a
    disagreement stands, and an agreement falls where math-verify does not look: the base that a number is written in, a
    letter that only one side has (`6` for `6m`, `2/3` for a reference it could not read), numbers said to be equal
    that are not. Relations (`k \ge 2`) are not looked into for letters.

    >>> settles("6", "6m", True), settles("43_5", "43_6", True), settles("73=72", "72", True), settles("6", "6", True)
    (False, False, False, True)
    """
    if gold.endswith(r"\%"):  # a reference in percent asks for percent, with the sign or without
        answer, gold = (text.removesuffix(r"\%").rstrip() for text in (answer, gold))
    values = number(answer), number(gold)
    if values[0] is not None and values[1] is not None:
        near = abs(values[0] - values[1]) <= NEAR * abs(values[1])
        return values[0] == values[1] or (agreed and near)
    return agreed and not (_other_base(answer, gold) or _false_chain(answer) or _other_letters(answer, gold))


def _other_base(answer: str, gold: str) -> bool:
    mine, wanted = _BASE.fullmatch(answer), _BASE.fullmatch(gold)
    if mine is None or not answer[0].isdigit():
        return False
    return wanted is None or mine[1] != wanted[1]


def _false_chain(answer: str) -> bool:
    values = {value for part in answer.split("=") if (value := number(part)) is not None}
    return len(values) > 1


def _other_letters(answer: str, gold: str) -> bool:
    if _RELATION.search(gold) or _RELATION.search(answer):
        return False
    mine, wanted = _right_sides(answer), _right_sides(gold)
    missing = _lone(wanted) - _letters(mine) - _CONSTANTS
    foreign = _lone(mine) - _letters(wanted) - _CONSTANTS - _DROPPED
    return bool(missing or foreign)


def _right_sides(text: str) -> str:
    """Without words, commands, and what stands before an equals sign."""
    return ",".join(part.rpartition("=")[2] for part in _WORDS.sub(" ", text).split(","))


def _lone(text: str) -> set[str]:
    return {letter.lower() for letter in _LONE.findall(text)}


def _letters(text: str) -> set[str]:
    return {letter.lower() for letter in text if letter.isalpha()}
