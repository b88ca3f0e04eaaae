"""A verifier's spelling of an answer: equal ones are judged alike, and it says no more than the response did."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from benchmark_files import FOLDER, needs_files
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_train.tasks.benchmarks import BENCHMARKS, from_file
from rewards.verdict import Verifier
from rewards.verify.countdown import countdown
from rewards.verify.countdown_search import SearchVerifier, countdown_search
from rewards.verify.exact import exact_integers, exact_set, exact_text
from rewards.verify.gym import GymVerifier
from rewards.verify.math import MathVerifier
from rewards.verify.notation import PLACES
from rollout.search_trace import TERSE

PURE: dict[str, tuple[Verifier, list[str]]] = {
    "integers": (exact_integers, ["7", "7 1", "1 7", "07", "-7"]),
    "set": (exact_set, ["7", "7 1", "1 7", "none", "1 1 7"]),
    "text": (exact_text, ["7", "7 1", "none", "a"]),
    "countdown": (countdown, ["7 from 7", "8 from 1 7", "7 from 1 7", "0 from 1 1 7"]),
    "search": (SearchVerifier(TERSE), ["7 from 7", "7 from 1 7", "8 from 1 7"]),
}
"""Each with references to try."""
PIECES = ["7", "1", " ", "-", "+", "*", "/", "(", ")", "none", "a", "\n", "=", ">0", ":7:7|", ":8:1 7|", "7=7", "8=8"]
WORDS = st.lists(st.sampled_from([*PIECES, "1+7=8:8\n", "<think>", "</think>"]), max_size=12).map("".join)
each_pure = pytest.mark.parametrize("name", PURE)


def said(answer: str) -> str:
    return f"<think></think>{answer}"


@pytest.fixture(scope="module")
def mathematics() -> Iterator[MathVerifier]:
    with MathVerifier(deadline_s=20) as made:
        yield made


@pytest.mark.parametrize(
    ("name", "response", "answer"),
    [
        ("integers", said(" 12 -7 0\n"), "12 -7 0"),
        ("integers", said("07"), "07"),  # another answer than 7, for this verifier
        ("integers", said("7 apples"), None),
        ("integers", said("7") + "</think>7", None),
        ("set", said("10 9 -1 9"), "9 9 -1 10"),
        ("set", said("none"), "none"),
        ("set", said(""), None),
        ("text", said(" A5  B1 "), "A5  B1"),
        ("text", said(" "), None),
        ("countdown", said("( 53 - 22 )*2"), "(53-22)*2"),
        ("countdown", said("5 3*2"), None),  # without its blank it would be an expression
        ("countdown", said("1/0"), "1/0"),
        ("countdown", said("-1"), None),
        ("search", ">0\n:7:7|\n7=7\n", ":7:7|\n7=7"),
        ("search", ":7:7|\n-\n", "-"),
        ("search", "7=7", None),
    ],
)
def test_where_an_answer_is_and_how_it_is_spelt(name: str, response: str, answer: str | None) -> None:
    assert PURE[name][0].answer(response) == answer


def test_a_search_that_gave_up_says_so_in_the_words_of_its_surface() -> None:
    assert countdown_search.answer("x\nNo solution found.\n") == "No solution found."


@each_pure
@settings(max_examples=400)
@given(one=WORDS, other=WORDS, blank=st.sampled_from(["", " ", "\n"]))
def test_equal_spellings_have_one_verdict(name: str, one: str, other: str, blank: str) -> None:
    verifier, references = PURE[name]
    responses = [one, said(one), f"{said(other)}{blank}", said(one.replace(" ", blank)), said(one[::-1])]
    found: dict[str | None, list[str]] = {}
    for response in responses:
        verdicts = [verifier(response, reference) for reference in references]
        assert found.setdefault(verifier.answer(response), verdicts) == verdicts
    assert set(found.get(None, ["unparsable"])) == {"unparsable"}


@each_pure
@settings(max_examples=400)
@given(text=WORDS | st.text())
def test_a_spelling_is_its_own_answer(name: str, text: str) -> None:
    verifier, references = PURE[name]
    for response in (text, said(text)):
        spelling = verifier.answer(response)
        if spelling is not None:
            again = spelling if name == "search" else said(spelling)
            assert verifier.answer(again) == spelling
            assert [verifier(again, each) for each in references] == [verifier(response, each) for each in references]


# --- mathematics ------------------------------------------------------------------------------------------------------

HALF = [
    "0.5",
    "1/2",
    r"\frac12",
    r"\frac{1}{2}",
    r"\dfrac{1}{2}",
    r"\tfrac 1{2}",
    ".50",
    "2/4",
    r"5\times10^{-1}",
    "5e-1",
]


@pytest.mark.parametrize(
    ("written", "spelling"),
    [
        *((text, "1/2") for text in HALF),
        ("1,250", "1250"),
        (r"1{,}250", r"1{,}250"),  # what is not surely a plain number stays as it is
        (r"1,\!250", "1250"),
        ("1250.00", "1250"),
        ("1, 250", "1, 250"),  # two numbers
        ("1,25", "1,25"),
        ("-0.5", "-1/2"),
        (r"-\frac12", "-1/2"),
        ("-0", "0"),
        ("6/3", "2"),
        ("5e-1", "1/2"),
        ("$7$.", "7"),
        ("7..", "7"),
        ("3/0", "3/0"),
        (r"\frac123", r"\frac123"),  # a half times three
        ("4.5e3", "4500"),
        ("1e400", "1" + "0" * 400),
        ("1e401", r"1\times 10^{401}"),  # not computed
        ("9" * 480 + "e300", "9" * 480 + r"\times 10^{300}"),  # longer than an answer may be
        ("9" * 500 + "e300", None),
        ("1e" + "9" * 300, r"1\times 10^{" + "9" * 300 + "}"),
        ("x  +\n1", "x + 1"),
        (r"\dfrac{x}{2}", r"\frac{x}{2}"),
        ("50%", r"50\%"),  # not a half: what is asked for decides
        (r"\text{two  halves}", r"\text{two halves}"),
        ("36 36", None),
        ("36$ $36", None),
        *((rf"5{end}", "5") for end in (r"\.", "\\ ", r"\ \ ", r".\ ", "\\\n")),  # would escape the bracket of a box
        (r"x\.", "x"),
        (r"5\\", r"5\\"),  # escapes nothing
        ("1.41421", "141421/100000"),
        *((text, text) for text in ("1.414214", "0.0000010", "1414214/3000001")),  # math-verify rounds decimals only
        ("1.60218e-19", r"1.60218\times 10^{-19}"),
        ("1*10^2*10^3", "1*10^2*10^3"),
        ("$$", None),
        ("1" * 513, None),
    ],
)
def test_mathematics_by_hand(mathematics: MathVerifier, written: str, spelling: str | None) -> None:
    assert mathematics.answer(rf"<think>3</think>It is \boxed{{{written}}}, as we know.") == spelling


def test_a_number_that_is_said_is_the_one_in_a_box(mathematics: MathVerifier) -> None:
    assert mathematics.answer("That makes 1,250.50 dollars.") == mathematics.answer(r"\boxed{2501/2}") == "2501/2"
    assert mathematics.answer("I do not know.") is None


@pytest.mark.parametrize("reference", ["1/2", "0.5", r"\sin \frac{\pi}{6}", "x=0.5", r"\frac{\sqrt{4}}{4}", "2", "50%"])
def test_mathematics_of_one_spelling_has_one_verdict(mathematics: MathVerifier, reference: str) -> None:
    verdicts = {mathematics(rf"\boxed{{{text}}}", reference) for text in HALF}
    assert verdicts == {"wrong" if reference in ("2", "50%") else "correct"}


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("1.414214", r"\sqrt{2}"),
        ("1.41421356237309504880", r"\sqrt{2}"),
        ("3.14159265358979323846", r"\pi"),
        ("2.718281828459045235360287", "e"),
        ("2.44949", r"\sqrt{6}"),  # 2.4494897, to six places a decimal of five
        ("0.333333333333333333333", "1/3"),
        ("0.142857142857142857142857", r"\frac{1}{7}"),
        ("1.60218e-19", "1.602177e-19"),
        ("8.854187e-12", r"8.8541878\times10^{-12}"),
    ],
)
def test_a_decimal_is_compared_to_the_places_that_it_is_written_with(
    mathematics: MathVerifier, text: str, reference: str
) -> None:
    assert mathematics(rf"\boxed{{{text}}}", reference) == "correct"


@pytest.mark.parametrize(
    ("text", "reference"),
    [("1414214/1000000", r"\sqrt{2}"), ("1/4194304", "2^{-21}"), (r"1\times 10^{-7}", "2^{-24}")],
)
def test_a_fraction_is_not_rounded_as_a_decimal_is(mathematics: MathVerifier, text: str, reference: str) -> None:
    assert mathematics(rf"\boxed{{{text}}}", reference) == "wrong"


SPACES = [r"\,", r"\ ", r"\;", r"\:", "~", r"\quad ", r"\qquad ", " ", r"\!\,", r"\,\!", r" \!"]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("one", "other"), [("100", "200"), ("1", "250")])
def test_a_comma_and_a_space_make_a_list(mathematics: MathVerifier, space: str, one: str, other: str) -> None:
    for text in (f"{one},{space}{other}", f"{one}{space},{other}"):
        assert mathematics.answer(rf"\boxed{{{text}}}") not in (f"{one}{other}", None)
    response = rf"\boxed{{{one},{space}{other}}}"
    for gold in (rf"\{{{one}, {other}\}}", f"({one},{other})", f"{one}, {other}"):
        assert mathematics(response, gold) == ("unparsable" if space == "~" else "correct")


@pytest.mark.parametrize("text", [r"1,\!250", r"1,\! 250", r"1\,250", "1,250"])
def test_a_mark_of_thousands_makes_no_list(mathematics: MathVerifier, text: str) -> None:
    assert mathematics.answer(rf"\boxed{{{text}}}") == "1250"
    assert mathematics(rf"\boxed{{{text}}}", r"\{1, 250\}") == "wrong"


SIGNS = [
    *"017.,/%$ \\{}()^_eE-x",
    r"\frac",
    r"\times",
    "10^",
    "np.",
    "boxed{",
    r"\text{m}",
    r"\!",
    "<think>",
    "é",
    "\n",
]


@settings(max_examples=1500, deadline=None)
@given(text=st.lists(st.sampled_from(SIGNS), max_size=25).map("".join) | st.text(max_size=30))
def test_a_mathematical_spelling_is_its_own_answer(mathematics: MathVerifier, text: str) -> None:
    for response in (text, said(text), said(rf"\boxed{{{text}}}")):
        spelling = mathematics.answer(response)
        assert spelling is None or mathematics.answer(said(rf"\boxed{{{spelling}}}")) == spelling


@settings(max_examples=200, deadline=None)
@given(value=st.fractions(max_denominator=10**9), zeros=st.integers(0, 3), power=st.integers(-9, 9))
def test_a_fraction_has_one_spelling(mathematics: MathVerifier, value: Any, zeros: int, power: int) -> None:
    above, below, wanted = value.numerator * 10**zeros, value.denominator * 10**zeros, str(value)
    sign = "-" if above < 0 else ""
    for text in (f"{above}/{below}", rf"{sign}\frac{{{abs(above)}}}{{{below}}}", rf"\({above} / {below}\)."):
        assert mathematics.answer(rf"\boxed{{{text}}}") == wanted
    power = max(power, -PLACES)  # smaller ones keep their own spelling
    decimal = f"{value.numerator}e{power}"
    scaled = value.numerator * (10**power if power >= 0 else 1), 10 ** max(0, -power)
    assert mathematics.answer(rf"\boxed{{{decimal}}}") == mathematics.answer(rf"\boxed{{{scaled[0]}/{scaled[1]}}}")


# --- hostile texts ----------------------------------------------------------------------------------------------------

SIZE = 200_000
HOSTILE = [
    *(
        "\\boxed{" * SIZE,
        "{" * SIZE,
        "1" * SIZE,
        "1," * SIZE,
        "1,111" * SIZE,
        "1/" * SIZE,
        "9^" * SIZE,
        "\ud800" * SIZE,
    ),
    *(
        "<answer>" * SIZE,
        "</answer>" * SIZE,
        "<answer></answer" * SIZE,
        "(" * SIZE,
        ":7:7|\n" * SIZE,
        " " * SIZE,
        "-" * SIZE,
    ),
    *(rf"\boxed{{{text}}}" for text in ("7" + "." * 511, "1" * 400 + "." * 112, "1e" * 256, "1 1/" * 128, "$" * 512)),
    *(rf"\boxed{{{text}}}" for text in ("%" * 512, "E_" * 256, "np." * 170, "1" * 510 + "e9", "(" * 512, "\\" * 512)),
    *(rf"\boxed{{{text}}}" for text in ("1" + "*10^400" * 70, "9" * 400 + "*10^400", "\\ " * 256, "1,\\," * 128)),
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: f"{text[:12]!r}")
def test_no_text_makes_an_answer_raise_or_take_long(mathematics: MathVerifier, text: str) -> None:
    gym = GymVerifier("basic_arithmetic", {})
    for verifier in (*(verifier for verifier, _ in PURE.values()), countdown_search, mathematics, gym):
        for response in (text, said(text), f"<think>{text}"):
            start = time.monotonic()
            verifier.answer(response)
            assert time.monotonic() - start < 1.0  # a pass per character would be 10**10 steps
    gym.close()


@pytest.mark.parametrize("text", ["1" + "*10^400" * 11, "1" + "*10^-400" * 70, "9" * 400 + "*10^400", "5\\"])
def test_no_text_makes_a_verdict_raise(mathematics: MathVerifier, text: str) -> None:
    for response in (rf"\boxed{{{text}}}", rf"\boxed{{{text} }}"):
        assert mathematics(response, "7") in ("wrong", "unparsable")
    assert mathematics(r"\boxed{7}", "1e" + "9" * 5000) == "error"


# --- references -------------------------------------------------------------------------------------------------------


@needs_files
def test_a_reference_is_still_right_in_its_one_spelling(mathematics: MathVerifier) -> None:
    assert FOLDER is not None
    rows = [row["answer"] for name in BENCHMARKS for row in from_file(FOLDER / f"{name}.jsonl")[:40]]
    spelt = [mathematics.answer(rf"\boxed{{{reference}}}") or "" for reference in rows]
    verdicts = mathematics.verify_many([(rf"\boxed{{{one}}}", gold) for one, gold in zip(spelt, rows, strict=True)])
    assert [gold for gold, verdict in zip(rows, verdicts, strict=True) if verdict != "correct"] == []
