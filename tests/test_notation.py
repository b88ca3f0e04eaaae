"""Answers as benchmarks write them: the same one in other notation is right; a lost letter, base or digit is not."""

from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.verdict import Verdict
from rewards.verify.math import MathVerifier
from rewards.verify.notation import number, settles, tidy


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(deadline_s=20) as made:
        yield made


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"4.5 \times 10^{33}", "4.5e33"),
        (r"4.5\cdot 10^{33}", "4.5e33"),
        ("4.5e33", "4.5e33"),
        ("0.00001", "1e-5"),
        (r"7.25 \times 10^{-11}", "7.25e-11"),
        (r"-\frac{1}{3}", "-1./3"),
        (r"\arcsin(10/13)", "np.arcsin(10/13)"),
        (r"\sin^{-1}(10/13)", "np.arcsin(10/13)"),
        ("62.5", "62.5%"),
        (r"62.5\%", "62.5%"),
        ("3 1/2", r"\frac{7}{2}"),
        (r"3\frac12", r"\frac{7}{2}"),
        ("84, 69", "69$,$84"),
        (r"(-\infty,0)\cup\{1\}", r"(-\infty, 0) \cup\{1\}$."),
        (r"\frac{37 m}{4}", r"\frac{37}{4} m"),
        ("mn", "m n"),
        (r"\frac{t}{m}", r"\frac{1}{m} t"),
        (r"c/\sqrt{2}", r"\frac{1}{\sqrt{2}}c"),
        (r"\frac{E_1 + 2E_2}{3}", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}"),
        ("2x", "f(x)=2 x"),
        ("x=5", "5"),
        ("[-2,7]", r"x \in [-2,7]"),
        ("52_8", "52_8"),
        (r"52_{8}", "52_8"),
        ("52", "52_8"),
        ("0.333333", r"\frac13"),
        (r"5 \text{ cents}", "5"),
        ("5 m", "5"),
        ("1,250", "1250"),
        (r"\(72\)", "72"),
        ("8+64=72", "72"),
    ],
)
def test_the_same_answer_in_other_notation_is_right(verifier: MathVerifier, answer: str, gold: str) -> None:
    assert verifier(rf"\boxed{{{answer}}}", gold) == "correct"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("6", "6m"),  # math-verify takes m for metres
        (r"\frac{37}{4}", r"\frac{37}{4} m"),
        (r"\frac{2}{3}", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}"),  # the last number of what it cannot read
        (r"\frac{1}{3} E_{1}+\frac{2}{3} E_{5}", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}"),
        ("2", r"\hbar \omega(v+1 / 2)-\frac{E_{0}^{2} e^{2}}{2 m \omega^{2}}"),
        ("0", r"(-\infty, 0) \cup\{1\}$."),
        ("4343_5", "4343_6"),
        ("72_3", "72"),
        ("0.0000673", "0.0000672"),  # equal to six decimals
        (".000067", ".0000672"),
        ("0", "7.4e-12"),
        ("4.5e34", "4.5e33"),
        ("4.5 e 33", "4.5e33"),
        ("148.5e", "4.5e33"),
        ("73=72", "72"),
        ("73 @ 72", "72"),
        (r"73 \to 72", "72"),
        (r"73 \\ 72", "72"),
        ("73 | 72", "72"),
        (r"\neg 72", "72"),
        (r"\(73\) \(72\)", "72"),
        ("$73$ $72$", "72"),
        ("E_{1} 72", "72"),
        ("0.625", "62.5%"),
        ("2", "3 1/2"),
        ("(2,1)", "(1,2)"),
        ("[3,4]", "(3,4]"),
    ],
)
def test_what_only_looks_the_same_is_not_right(verifier: MathVerifier, answer: str, gold: str) -> None:
    assert verifier(rf"\boxed{{{answer}}}", gold) in ("wrong", "unparsable")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,250", Fraction(1250)),
        ("1,25", None),
        ("-.5", Fraction(-1, 2)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        ("3/0", None),
        (r"5\times 10^{-3}", Fraction(1, 200)),
        (r"5 \cdot 10^3", Fraction(5000)),
        (r"1\times 10^{9999}", None),
        (r"11,\! 111,\! 100", Fraction(11_111_100)),
        ("3 4", None),
        ("2x", None),
        ("٣", None),
        ("", None),
    ],
)
def test_plain_numbers_are_read_exactly(text: str, value: Fraction | None) -> None:
    assert number(text) == value


@given(st.fractions(max_denominator=10**6), st.integers(-20, 20))
def test_a_number_is_what_was_written(value: Fraction, power: int) -> None:
    assert number(f"{value.numerator}/{value.denominator}") == value
    text = tidy(f"{value.numerator}e{power}")
    assert number(text) == value.numerator * Fraction(10) ** power
    assert settles(text, text, agreed=False)
    assert not settles(text, tidy(f"{value.numerator + 1}e{power}"), agreed=False)


PIECES = st.lists(st.sampled_from([*r"0179.,/eE_{}()$\% =", "\\frac", "\\times", "10^", "x", "np.", "\\text{m}", "-"]))


@given(st.one_of(st.text(max_size=512), PIECES.map(lambda pieces: "".join(pieces)[:512])), st.text(max_size=40))
def test_no_text_makes_notation_raise(text: str, gold: str) -> None:
    tidied = tidy(text)
    number(tidied)
    assert settles(tidied, tidy(gold), agreed=False) in (True, False)
    assert settles(tidied, tidy(gold), agreed=True) in (True, False)


@pytest.mark.parametrize(
    "hostile",
    ["9" * 512, "1," * 256, "e1" * 256, "1e" * 256, "x_" * 256, "(" * 512, "$" * 512, "1 1/1" * 100, "\\text{" * 80],
)
def test_long_texts_are_tidied_at_once(verifier: MathVerifier, hostile: str) -> None:
    verdict: Verdict = verifier(rf"\boxed{{{hostile}}}", "72")
    assert verdict in ("wrong", "unparsable", "timeout")
