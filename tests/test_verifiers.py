"""Verifiers: a verdict for every text, strictness, exactness, and a child process that cannot hang or leak."""

import os
import signal
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.verdict import Verdict
from rewards.verify import child as child_module
from rewards.verify import math as math_module
from rewards.verify.countdown import MAX_CHARACTERS, countdown
from rewards.verify.exact import exact_integers, exact_text
from rewards.verify.math import MathVerifier, MathVerifierError, extract

MODEL_TEXT = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(["<think>", "</think>", "1", "-", "(", ")", "/", "*", "\\boxed{", "}", " ", "٣", "\n"])
    ).map("".join),
)


def said(answer: str) -> str:
    return f"<think>work 99</think>{answer}"


# --- exact integers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (said("714"), "correct"),
        (said("\n714 \n"), "correct"),
        (said("715"), "wrong"),
        (said("0714"), "wrong"),
        (said("-714"), "wrong"),
        (said("7 1 4"), "wrong"),
        (said("714 714"), "wrong"),
        (said(""), "unparsable"),
        (said("714."), "unparsable"),
        (said("714 or 715"), "unparsable"),
        (said("714\n715"), "unparsable"),
        (said("+714"), "unparsable"),
        (said("71 4 "), "wrong"),
        (said("٧١٤"), "unparsable"),
        (said("7１4"), "unparsable"),
        (said("714</think>714"), "unparsable"),
        ("<think>714", "unparsable"),
        ("714", "unparsable"),
        ("</think>714", "correct"),
    ],
)
def test_integers_accept_nothing_but_the_reference(text: str, verdict: Verdict) -> None:
    assert exact_integers(text, "714") == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("A5B1", "correct"), (" A5B1\n", "correct"), ("A5", "wrong"), ("A5B1C2", "wrong"), ("", "unparsable")],
)
def test_exact_text_accepts_nothing_but_the_reference(text: str, verdict: Verdict) -> None:
    assert exact_text(said(text), "A5B1") == verdict


def test_integer_lists_keep_their_order() -> None:
    assert exact_integers(said("12 -7 0"), "12 -7 0") == "correct"
    assert exact_integers(said("-7 12 0"), "12 -7 0") == "wrong"


def test_a_bad_reference_is_our_error_and_not_a_wrong_answer() -> None:
    assert exact_integers(said("714"), "seven") == "error"
    assert countdown(said("1+1"), "2 = 1, 1") == "error"


def test_a_number_of_ten_thousand_digits_is_judged_not_converted() -> None:
    digits = "9" * 10_000  # int() of it raises
    assert exact_integers(said(digits), digits) == "correct"
    assert exact_integers(said(digits), "9") == "wrong"


# --- countdown --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "verdict"),
    [
        ("(53-22)*2", "correct"),
        ("2 * (53 - 22)", "correct"),
        ("2*53-2*22", "wrong"),  # uses 2 twice
        ("31*2", "wrong"),  # numbers that were not given
        ("53-22", "wrong"),  # leaves one out
        ("53-22*2", "wrong"),
        ("53/(22-22)", "wrong"),
        ("(53-22)*2=62", "unparsable"),
        ("(53-22)*2, (53-22)*2", "unparsable"),
        ("(53-22)*2\n(53-22)*2", "unparsable"),
        ("62", "wrong"),
        ("", "unparsable"),
        ("(53-22)*2 is it", "unparsable"),
        ("-(22-53)*2", "unparsable"),
        ("53-22**2", "unparsable"),
        ("53//22*2", "unparsable"),
        ("(53-22)(2)", "unparsable"),
        ("(53-22)*2.0", "unparsable"),
        ("__import__('os')", "unparsable"),
        ("(5_3-22)*2", "unparsable"),
        ("(53-22)*0x2", "unparsable"),
        ("(53-22)*2#", "unparsable"),
        ("(53-\n22)*2", "unparsable"),
        ("(53-22)*٢", "unparsable"),
        ("(" * 95 + "2" + ")" * 95, "wrong"),
        ("(" * 99 + "2" + ")" * 99, "wrong"),
        ("(" * 300 + "2" + ")" * 300, "unparsable"),
        ("+".join(["1"] * 99), "wrong"),
        ("9**9**9**9", "unparsable"),
    ],
)
def test_countdown_accepts_only_a_legal_expression_of_the_given_numbers(expression: str, verdict: Verdict) -> None:
    assert countdown(said(expression), "62 from 22 2 53") == verdict


def test_countdown_is_exact_where_floats_are_not() -> None:
    assert countdown(said("(1/3)*3"), "1 from 1 3 3") == "correct"  # fractions between are legal
    assert countdown(said("1/49*49"), "1 from 1 49 49") == "correct"  # 0.9999999999999999 in floats
    assert countdown(said("10*10*10*10*10*10*10*10*10+1"), "1000000001 from 1 10 10 10 10 10 10 10 10 10") == "correct"


Tree = tuple[str, Fraction, list[int]]
LEAF = st.integers(1, 99).map(lambda number: (str(number), Fraction(number), [number]))
OPERATORS = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}


@st.composite
def _node(draw: st.DrawFn, children: st.SearchStrategy[Tree]) -> Tree:
    left, right, sign = draw(children), draw(children), draw(st.sampled_from("+-*/"))
    if sign == "/" and right[1] == 0:
        sign = "+"
    return f"({left[0]}{sign}{right[0]})", OPERATORS[sign](left[1], right[1]), [*left[2], *right[2]]


@given(st.recursive(LEAF, lambda children: _node(children), max_leaves=8), st.integers(-3, 3))
def test_countdown_agrees_with_the_value_an_expression_was_built_to_have(tree: Tree, off: int) -> None:
    text, value, numbers = tree
    if value.denominator != 1 or value < 3 or len(text) > MAX_CHARACTERS:
        return
    reference = f"{value + off} from {' '.join(map(str, sorted(numbers)))}"
    assert countdown(said(text), reference) == ("correct" if off == 0 else "wrong")
    assert countdown(said(text), f"{value} from {' '.join(map(str, [*numbers, 1]))}") == "wrong"


@given(MODEL_TEXT, st.sampled_from(["714", "62 from 22 2 53", "?"]))
def test_no_text_makes_a_verifier_raise(text: str, reference: str) -> None:
    for verifier in (exact_integers, exact_text, countdown):
        for response in (text, said(text)):
            assert verifier(response, reference) in get_args(Verdict)
    found = extract(text)
    assert found is None or found in text


# --- mathematics ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(deadline_s=20) as made:
        yield made


@pytest.mark.parametrize(
    ("response", "found"),
    [
        (r"<think>\boxed{1}</think>So \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"7 \boxed{2", None),
        (r"\boxed{ }", None),
        (r"\boxed{36 36}", None),  # math-verify would read 72
        (r"\boxed{36\ 36}", None),
        (r"\boxed{3, 5, 7}", "3, 5, 7"),
        (r"\boxed{" + "1" * 600 + "}", None),
        ("<think>the answer is 5", None),
        ("<think>5</think>6</think>7", None),
        ("<think>5</think>", None),
        ("5-3 = 2. Thus $1,250.50!", "1,250.50"),
        ("about 3/4", "3/4"),
        ("It is .0672.", ".0672"),
        ("section.5", None),
        ("x2", None),
        ("٣", None),
    ],
)
def test_the_answer_is_the_last_box_or_number_after_the_reasoning(response: str, found: str | None) -> None:
    assert extract(response) == found


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("72", "72", "correct"),
        ("72.0", "72", "correct"),
        (r"\frac{1}{2}", "0.5", "correct"),
        ("1,000", "1000", "correct"),
        ("1+x", "x+1", "correct"),
        (r"\text{Evelyn}", r"\text{Evelyn}", "correct"),
        ("73", "72", "wrong"),
        (r"72 \text{ or } 73", "72", "wrong"),
        ("7, 5, 3", "3, 5, 7", "correct"),
        ("3, 5", "3, 5, 7", "wrong"),
        ("@@", "72", "unparsable"),
        ("٧٢", "72", "unparsable"),
        ("\ud800\x00", "72", "unparsable"),
        ("72", "", "error"),
        ("72", "1" * 600, "error"),
    ],
)
def test_math_verdicts(verifier: MathVerifier, answer: str, gold: str, verdict: Verdict) -> None:
    assert verifier(rf"<think></think>\boxed{{{answer}}}", gold) == verdict


@pytest.mark.parametrize("hostile", ["9^{9^{9^9}}", "9999999999!", "(" * 240 + "72" + ")" * 240])
def test_a_hostile_expression_ends_at_the_deadline_and_the_next_answer_is_judged(hostile: str) -> None:
    with MathVerifier(deadline_s=1.5) as verify:
        assert verify(r"\boxed{72}", "72") == "correct"  # so that the child's start is not in the measured time
        start = time.monotonic()
        assert verify(rf"\boxed{{{hostile}}}", "72") in ("timeout", "wrong", "unparsable")
        assert time.monotonic() - start < 4
        assert verify(r"\boxed{72}", "72") == "correct"


def test_powers_written_in_python_end_quickly(verifier: MathVerifier) -> None:
    assert verifier(r"\boxed{9**9**9**9}", "72") in ("timeout", "wrong", "unparsable")


def test_a_timeout_is_named() -> None:
    with MathVerifier(deadline_s=1) as verify:
        assert verify(r"\boxed{9^{9^{9^9}}}", "72") == "timeout"


def _pids(verify: MathVerifier) -> list[int]:
    return [worker._process.pid for worker in verify._workers if worker._process]  # pyright: ignore[reportPrivateUsage]


def test_a_child_that_is_killed_costs_no_verdict() -> None:
    with MathVerifier(deadline_s=20) as verify:
        assert verify("72", "72") == "correct"
        os.kill(_pids(verify)[0], 9)
        assert verify("72", "72") == "correct"


def test_a_child_that_is_killed_while_it_starts_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read, starts = child_module.Worker._read, [0]  # pyright: ignore[reportPrivateUsage]

    def dies(process: Any, seconds: float) -> Any:
        starts[0] += seconds != 20
        if starts[0] == 1:
            raise child_module.WorkerDied  # pyright: ignore[reportPrivateUsage]
        return read(process, seconds)

    monkeypatch.setattr(child_module.Worker, "_read", staticmethod(dies))  # pyright: ignore[reportPrivateUsage]
    with MathVerifier(deadline_s=20) as verify:
        assert verify("72", "72") == "correct"
        assert starts == [2]


def test_an_answer_that_kills_every_child_is_an_error_and_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    read, died = child_module.Worker._read, [0]  # pyright: ignore[reportPrivateUsage]

    def dies(process: Any, seconds: float) -> Any:
        if seconds == 20:  # the reply, not the start
            died[0] += 1
            raise child_module.WorkerDied  # pyright: ignore[reportPrivateUsage]
        return read(process, seconds)

    monkeypatch.setattr(child_module.Worker, "_read", staticmethod(dies))  # pyright: ignore[reportPrivateUsage]
    with MathVerifier(deadline_s=20) as verify:
        assert verify("72", "72") == "error"
        assert died == [2]


def test_a_signal_that_slurm_sends_to_every_process_leaves_the_verifier_alone() -> None:
    with MathVerifier(deadline_s=20) as verify:
        assert verify("72", "72") == "correct"
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(_pids(verify)[0], number)
        assert verify("72", "72") == "correct"


def test_an_interrupt_between_question_and_reply_does_not_shift_the_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with MathVerifier(deadline_s=20) as verify:
        assert verify("72", "72") == "correct"
        with monkeypatch.context() as patch:
            patch.setattr(child_module.Worker, "_read", staticmethod(interrupted))  # pyright: ignore[reportPrivateUsage]
            with pytest.raises(KeyboardInterrupt):
                verify("72", "72")
        assert verify("73", "72") == "wrong"


def test_many_answers_on_two_workers_keep_their_order() -> None:
    pairs = [(str(number), "3") for number in range(8)]
    with MathVerifier(deadline_s=20, workers=2) as verify:
        assert verify.verify_many(pairs) == ["correct" if number == 3 else "wrong" for number in range(8)]
        children = _pids(verify)
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    with pytest.raises(MathVerifierError, match="closed"):
        verify("72", "72")
    verify.close()


def test_several_hung_answers_delay_and_zero_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """More hung ones than workers, among good ones: every good one is judged before anybody is waited for."""
    asked: list[tuple[str, float]] = []
    ask = child_module.Worker.ask  # pyright: ignore[reportPrivateUsage]

    def recorded(self: object, answer: str, gold: str, deadline_s: float) -> Verdict:
        asked.append((answer, deadline_s))
        return ask(self, answer, gold, deadline_s)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(child_module.Worker, "ask", recorded)  # pyright: ignore[reportPrivateUsage]
    hung = r"\boxed{9^{9^{9^9}}}"
    pairs = [(hung, "72"), (hung, "72"), ("72", "72"), (hung, "72"), ("36", "36"), ("5", "6"), (hung, "1")]
    with MathVerifier(deadline_s=1.5, workers=2) as verify:
        verdicts = verify.verify_many(pairs)
    assert verdicts == ["timeout", "timeout", "correct", "timeout", "correct", "wrong", "timeout"]
    first_long = next(i for i, (_, deadline_s) in enumerate(asked) if deadline_s == 1.5)
    assert {"72", "36", "5"} <= {answer for answer, _ in asked[:first_long]}
    assert all(deadline_s < 1.5 for _, deadline_s in asked[:first_long]) and len(asked) == len(pairs) + 4


def test_the_child_sees_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-the-test")
    with MathVerifier(deadline_s=20) as verify:
        assert verify("72", "72") == "correct"
        with open(f"/proc/{_pids(verify)[0]}/environ") as environ:
            assert "secret-of-the-test" not in environ.read()


def test_a_child_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_module, "MEMORY_BYTES", 40 << 20)
    with MathVerifier() as verify, pytest.raises(MathVerifierError, match="did not start"):
        verify("72", "72")


def test_math_verify_missing_or_bad_settings_are_told_before_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MathVerifierError, match="deadline_s"):
        MathVerifier(deadline_s=0)

    def missing(_: str) -> None:
        return None

    monkeypatch.setattr(math_module, "find_spec", missing)
    with pytest.raises(MathVerifierError, match="pip install"):
        MathVerifier()
