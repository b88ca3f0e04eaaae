"""Tasks: disjoint splits, seeds, correct demonstrations, and one clear line for every bad option."""

import re
from itertools import combinations
from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_train.tasks import make_task
from apr_train.tasks.arithmetic import Instance, render
from apr_train.tasks.base import Form, Problem, TaskError
from apr_train.tasks.countdown import given as table_of
from apr_train.tasks.countdown import solvable
from apr_train.tasks.multiplication import partial, places, total, work
from apr_train.tasks.split import hashed, split_of
from rollout.demonstration import Block, Demonstration

GENERATED = ["arithmetic", "multiplication", "countdown"]
COUNTS = {"arithmetic": 300, "multiplication": 100, "countdown": 60}


def key(task: str, problem: Problem) -> str:
    """What makes two problems the same: the order of factors and numbers does not."""
    if task == "arithmetic":
        return problem.prompt
    return " ".join(sorted(re.findall(r"\d+", problem.answer if task == "countdown" else problem.prompt)))


def text_of(demonstration: Demonstration) -> str:
    pieces = [
        piece if isinstance(piece, str) else "".join(body for _, body in piece.threads)
        for piece in demonstration.reasoning
    ]
    return "".join(pieces)


@pytest.mark.parametrize("name", GENERATED)
def test_same_seed_same_problems_and_another_seed_others(name: str) -> None:
    problems = make_task(name, {}).problems("train", 20, seed=3)
    assert problems == make_task(name, {}).problems("train", 20, seed=3)
    assert problems[:7] == make_task(name, {}).problems("train", 7, seed=3)
    assert [p.prompt for p in problems] != [p.prompt for p in make_task(name, {}).problems("train", 20, seed=4)]
    assert len({problem.id for problem in problems}) == 20


@pytest.mark.parametrize("name", GENERATED)
def test_train_and_heldout_never_meet_whatever_the_seeds(name: str) -> None:
    task = make_task(name, {})
    train = {key(name, problem) for seed in (0, 1) for problem in task.problems("train", COUNTS[name], seed)}
    held = {key(name, problem) for seed in (0, 2) for problem in task.problems("heldout", COUNTS[name] // 2, seed)}
    assert train
    assert held
    assert not train & held


def test_the_split_is_the_same_on_every_machine_and_in_every_run() -> None:
    assert hashed("countdown") == 0xEDC12C658FA812A8  # printf countdown | b2sum -l 64
    assert split_of("countdown", 0.929) == "heldout"  # the hash is 0.92872... of 2**64
    assert split_of("countdown", 0.928) == "train"


@pytest.mark.parametrize("name", ["multiplication", "countdown"])
def test_the_order_of_the_numbers_decides_nothing_about_the_split(name: str) -> None:
    small: dict[str, Any] = {"multiplication": {"factors_min": 2, "factors_max": 2, "high": 8}}.get(
        name, {"numbers": 3, "number_max": 9, "target_max": 14}
    )
    task = make_task(name, small)
    sides = [{key(name, problem) for problem in task.problems(split, 300, 0)} for split in ("train", "heldout")]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize("steps", range(1, 30))
def test_both_splits_have_one_part_problems_even_when_only_the_start_varies(steps: int) -> None:
    task = make_task("arithmetic", {"parts_max": 1, "steps_min": steps, "steps_max": steps})
    starts = [{problem.prompt for problem in task.problems(split, 200, 0)} for split in ("train", "heldout")]
    assert [len(side) for side in starts] == [8, 2]
    assert not starts[0] & starts[1]


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_every_demonstration_is_judged_correct(name: str, form: Form) -> None:
    task = make_task(name, {})
    for problem in task.problems("train", 60, seed=0):
        if form == "parallel" and problem.parts == 1:
            continue
        demonstration = task.demonstration(problem, form)
        assert (
            task.verifier(f"<think>{text_of(demonstration)}</think>{demonstration.answer}", problem.answer) == "correct"
        )
        blocks = [piece for piece in demonstration.reasoning if isinstance(piece, Block)]
        assert bool(blocks) == (form == "parallel")
        assert form == "sequential" or len(blocks[0].threads) == problem.parts
        assert all(2 <= len(block.threads) <= 8 for block in blocks)


@pytest.mark.parametrize(
    ("name", "options"), [("arithmetic", {"parts_max": 1}), ("multiplication", {"factors_min": 2})]
)
def test_one_part_has_no_parallel_form(name: str, options: dict[str, int]) -> None:
    task = make_task(name, options)
    single = next(problem for problem in task.problems("train", 20, 0) if problem.parts == 1)
    assert task.demonstration(single, "sequential").answer == single.answer
    with pytest.raises(TaskError, match="only the sequential form"):
        task.demonstration(single, "parallel")


@pytest.mark.parametrize(("name", "least"), [("arithmetic", 2.0), ("multiplication", 1.4), ("countdown", 1.3)])
def test_the_parallel_form_is_worth_learning(name: str, least: float) -> None:
    """Mean length over mean longest path, in characters; outlines count in full."""
    task = make_task(name, {})
    problems = [problem for problem in task.problems("train", 100, 0) if problem.parts != 1]
    sequential = sum(len(text_of(task.demonstration(problem, "sequential"))) for problem in problems)
    longest = 0
    for problem in problems:
        for piece in task.demonstration(problem, "parallel").reasoning:
            if isinstance(piece, str):
                longest += len(piece)
            else:
                longest += sum(len(outline) for outline, _ in piece.threads) + max(
                    len(body) for _, body in piece.threads
                )
    assert sequential / longest >= least


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize(("split", "count"), [("test", 1), ("train", -1)])
def test_a_split_or_count_that_cannot_be_is_refused(name: str, split: Any, count: int) -> None:
    with pytest.raises(TaskError):
        make_task(name, {}).problems(split, count, 0)


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_chains_are_counted_as_by_hand() -> None:
    surface = render(Instance(starts=(8, 1), strides=(1, 3), steps=4))
    assert surface.prompt == "a8,b1+3*4="
    assert surface.chains == ("a89012A2", "b14703B3")
    assert surface.answer == "A2B3"


def test_numbers_of_parts_come_in_equal_shares() -> None:
    problems = make_task("arithmetic", {}).problems("heldout", 500, seed=1)
    assert [sum(problem.parts == parts for problem in problems) for parts in range(1, 6)] == [100] * 5


def test_arithmetic_demonstration_lines_are_the_threads() -> None:
    task = make_task("arithmetic", {"parts_min": 2, "strides": [1, 7]})
    for problem in task.problems("train", 20, 0):
        (lines,) = task.demonstration(problem, "sequential").reasoning
        (block,) = task.demonstration(problem, "parallel").reasoning
        assert isinstance(block, Block)
        assert isinstance(lines, str)
        assert lines.splitlines() == [body for _, body in block.threads]
        assert [body[0] for _, body in block.threads] == [outline for outline, _ in block.threads]
        assert problem.answer == "".join(body[-2:] for _, body in block.threads)


def test_checking_threads_do_no_work_of_their_own() -> None:
    task = make_task("arithmetic", {"parts_max": 3})
    counts: set[int] = set()
    for problem in task.problems("train", 60, 0):
        lines, block = task.demonstration(problem, "checked").reasoning
        assert (lines,) == task.demonstration(problem, "sequential").reasoning
        assert isinstance(block, Block)
        results = [problem.answer[i : i + 2] for i in range(0, len(problem.answer), 2)]
        assert [body for _, body in block.threads] == [results[i % len(results)] for i in range(len(block.threads))]
        counts.add(len(block.threads))
    assert counts == {1, 2, 3, 4, 5, 6}


# --- multiplication ---------------------------------------------------------------------------------------------------


def test_long_multiplication_is_written_as_by_hand() -> None:
    assert work(12, 301) == "301*10: 1*1=1 0*1=0 3*1=3 = 3010\n301*2: 1*2=2 0*2=0 3*2=6 = 602\n3010 + 602 = 3612"
    assert partial(47, 300) == "47*300: 7*3=21 4*3+2=14 = 14100"
    assert total([3000, 10, 2]) == "3000 + 10 + 2 = 3010 + 2 = 3012"
    assert work(5, 0).endswith(" = 0")


def _check_equations(text: str) -> int:
    """Every `a = b = c` of sums and products holds; how many sides were compared."""
    compared = 0
    for line in text.splitlines():
        sides = [side for side in line.split(": ")[-1].split(" = ") if re.fullmatch(r"\d+( [+] \d+)*", side)]
        values = {sum(map(int, side.split(" + "))) for side in sides}
        assert len(values) <= 1, line
        compared += len(sides)
        for a, b, carry, value in re.findall(r"\b(\d)\*(\d)(?:\+(\d))?=(\d+)", line):
            assert int(a) * int(b) + int(carry or 0) == int(value), line
    return compared


@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_every_line_of_a_product_holds(form: Form) -> None:
    task = make_task("multiplication", {})
    for problem in task.problems("train", 40, 0):
        factors = [int(factor) for factor in problem.prompt.removesuffix(" =").split(" * ")]
        assert int(problem.answer) == prod(factors)
        assert 5 <= len(factors) <= 8
        assert all(0 <= factor <= 1000 for factor in factors)
        pieces = task.demonstration(problem, form).reasoning
        bodies = [body for piece in pieces if isinstance(piece, Block) for _, body in piece.threads]
        texts = [piece for piece in pieces if isinstance(piece, str)]
        assert sum(_check_equations(text) for text in [*bodies, *texts]) > 5
        for piece in pieces:  # what a thread was asked for is what it ends with
            for outline, body in piece.threads if isinstance(piece, Block) else ():
                assert int(re.findall(r"\d+", body)[-1]) == prod(map(int, outline.split(" * ")))


@given(st.integers(0, 10**15), st.integers(1, 4))
def test_places_add_up_to_the_number(number: int, width: int) -> None:
    assert sum(places(number, width)) == number


# --- countdown --------------------------------------------------------------------------------------------------------


def _reachable(numbers: tuple[int, ...]) -> set[int]:
    """All values by splitting the numbers in two in every way: another algorithm than the solver's moves."""
    if len(numbers) == 1:
        return set(numbers)
    found: set[int] = set()
    for size in range(1, len(numbers) // 2 + 1):
        for chosen in combinations(range(len(numbers)), size):
            left = _reachable(tuple(numbers[index] for index in chosen))
            right = _reachable(tuple(numbers[index] for index in range(len(numbers)) if index not in chosen))
            for a in left:
                for b in right:
                    found |= {a + b, a * b, abs(a - b)}
                    large, small = max(a, b), min(a, b)
                    if small and large % small == 0:
                        found.add(large // small)
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=4))
def test_the_solver_finds_exactly_what_brute_force_finds(numbers: list[int]) -> None:
    reachable = _reachable(tuple(numbers))
    for target in range(10, 101, 3):
        assert solvable(table_of(tuple(numbers)), target) == (target in reachable)


def test_countdown_instances_follow_the_published_spec() -> None:
    for problem in make_task("countdown", {}).problems("train", 60, 0):
        target, numbers = problem.answer.split(" from ")
        drawn = [int(number) for number in numbers.split(" ")]
        assert len(drawn) == 4
        assert all(1 <= number <= 99 for number in drawn)
        assert 10 <= int(target) <= 100
        assert int(target) in _reachable(tuple(drawn))


@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_every_step_of_a_search_holds(form: Form) -> None:
    task = make_task("countdown", {})
    steps = 0
    for problem in task.problems("train", 40, 0):
        demonstration = task.demonstration(problem, form)
        blocks = [piece for piece in demonstration.reasoning if isinstance(piece, Block)]
        outlines = [outline for block in blocks for outline, _ in block.threads]
        for a, sign, b, value in re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", text_of(demonstration) + " ".join(outlines)):
            # a / b = value is checked as value * b = a
            left, right = (int(a), int(value)) if sign != "/" else (int(value), int(a))
            expected = {"+": left + int(b), "-": left - int(b), "*": left * int(b), "/": left * int(b)}
            assert expected[sign] == right
            steps += 1
    assert steps > 500


def test_a_target_out_of_reach_is_told_and_not_searched_for_ever() -> None:
    task = make_task("countdown", {"numbers": 3, "number_max": 1, "target_min": 90, "target_max": 90})
    with pytest.raises(TaskError, match="widen"):
        task.problems("train", 1, 0)


# --- registry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("countdwn", {}, "did you mean 'countdown'"),
        ("zzz", {}, "use one of arithmetic, corpus, countdown, countdown_search, jsonl, multiplication"),
        ("arithmetic", {"part_max": 3}, "did you mean 'parts_max'"),
        ("arithmetic", {"parts_max": "3"}, "option parts_max: '3' is not int"),
        ("arithmetic", {"parts_max": True}, "option parts_max: True is not int"),
        ("arithmetic", {"strides": 2}, "option strides: 2 is not tuple"),
        ("arithmetic", {"strides": [1, "2"]}, "option strides"),
        ("arithmetic", {"strides": [0]}, "strides of 1 to 9"),
        ("arithmetic", {"parts_max": 27}, "parts_max <= 26"),
        ("arithmetic", {"steps_min": 9, "steps_max": 8}, "steps_min <= steps_max"),
        ("multiplication", {"factors_min": 1}, "factors_min"),
        ("multiplication", {"low": 9, "high": 8}, "low <= high"),
        ("countdown", {"numbers": 9}, "3 to 5 numbers"),
        ("jsonl", {}, "exactly one of"),
        ("jsonl", {"path": "nowhere.jsonl"}, "no file nowhere.jsonl"),
        ("jsonl", {"path": "a", "heldout_split": "test"}, "belongs to a dataset"),
        ("jsonl", {"path": "a", "heldout_share": 1}, "heldout_share"),
    ],
)
def test_a_bad_name_or_option_is_one_line_that_names_the_nearest(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskError) as caught:
        make_task(name, options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_without_room_for_a_split_are_told_and_not_searched_for_ever() -> None:
    task = make_task("multiplication", {"low": 3, "high": 3})
    with pytest.raises(TaskError, match="widen"):
        _ = task.problems("train", 8, 0), task.problems("heldout", 8, 0)
