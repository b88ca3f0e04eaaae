"""Sorting and set intersection: right by an independent count, the same by seed, and demonstrated in both forms."""

from collections import Counter
from typing import Any

import pytest

from apr_train.tasks import make_task
from apr_train.tasks.base import Form, Problem, TaskError
from apr_train.tasks.sorting import counted, merged, parts_of
from rewards.verdict import Verdict
from rewards.verify.exact import exact_set
from rollout.demonstration import Block, Demonstration

TASKS: list[tuple[str, dict[str, Any]]] = [
    ("sorting", {}),
    ("sorting", {"length": 64, "threads": 4}),
    ("set_intersection", {}),
    ("set_intersection", {"size": 64, "below": 128, "threads": 3}),
    ("set_intersection", {"size": 4, "below": 12, "shared_min": 0.0, "shared_max": 0.3}),
]


def key(name: str, problem: Problem) -> Any:
    """What makes two problems the same."""
    if name == "sorting":
        return tuple(sorted(problem.prompt))
    return frozenset(frozenset(side.split()) for side in problem.prompt.split(" & "))


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_the_answer_is_right_by_an_independent_count(name: str, options: dict[str, Any]) -> None:
    for problem in make_task(name, options).problems("train", 40, 0):
        if name == "sorting":
            words = problem.prompt.removeprefix("Sort: ").split()
            assert Counter(words) == Counter(problem.answer.split())
            assert all(a <= b for a, b in zip(problem.answer, problem.answer[2:], strict=False) if a != " ")
            assert len(words) == options.get("length", 32)
        else:
            one, other = (side.split() for side in problem.prompt.split(" & "))
            assert len(set(one)) == len(one) == len(set(other)) == options.get("size", 32)
            assert set(problem.answer.split()) - {"none"} == set(one) & set(other)
            assert (problem.answer == "none") == (not set(one) & set(other))


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_same_seed_same_problems_and_the_sides_never_meet(name: str, options: dict[str, Any]) -> None:
    task = make_task(name, options)
    problems = task.problems("train", 20, 3)
    assert problems == make_task(name, options).problems("train", 20, 3)
    assert problems[:7] == task.problems("train", 7, 3)
    assert problems != task.problems("train", 20, 4)
    sides = [{key(name, p) for p in task.problems(side, 60, 0)} for side in ("train", "heldout")]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize(("name", "options"), TASKS)
@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_every_demonstration_is_judged_correct_and_its_threads_are_parts(
    name: str, options: dict[str, Any], form: Form
) -> None:
    task = make_task(name, options)
    for problem in task.problems("train", 20, 0):
        shown = task.demonstration(problem, form)
        assert isinstance(shown, Demonstration)
        assert task.verifier(f"<think>work</think>{shown.answer}", problem.answer) == "correct"
        blocks = [piece for piece in shown.reasoning if isinstance(piece, Block)]
        assert [len(block.threads) for block in blocks] == ([problem.parts] if form == "parallel" else [])
        for block in blocks:
            assert [body.rpartition(" = ")[2] for _, body in block.threads if isinstance(body, str)] == [
                answer for _, answer in block.tasks
            ]
            assert isinstance(shown.reasoning[-1], str)
            assert shown.reasoning[-1].strip().endswith(shown.answer)


def test_the_work_is_written_as_by_hand() -> None:
    assert parts_of([5, 1, 4, 2, 3], 2) == [[5, 1], [4, 2, 3]]
    assert counted([3, 1, 3]) == "3 1 3: 1x1 3x2 = 1 3 3"
    assert merged([[1, 3], [2], [2, 5]]) == "1 3 | 2 = 1 2 3\n1 2 3 | 2 5 = 1 2 2 3 5\n"
    task = make_task("set_intersection", {})
    problem = Problem("x", "7 3 9 & 9 1 7", "7 9", 2)
    parallel = task.demonstration(problem, "parallel")
    block = Block((("7", "7+ = 7"), ("3 9", "3- 9+ = 9")), tasks=(("7 & 9 1 7", "7"), ("3 9 & 9 1 7", "9")))
    assert parallel == Demonstration((block, "7 | 9 = 7 9\n"), "7 9")
    assert task.demonstration(problem, "sequential") == Demonstration(("7+ 3- 9+ = 7 9\n",), "7 9")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("7 9", "correct"),
        ("9 7", "correct"),
        ("7", "wrong"),
        ("7 7 9", "wrong"),
        ("7 9 3", "wrong"),
        ("none", "wrong"),
        ("07 9", "wrong"),
        ("7, 9", "unparsable"),
        ("", "unparsable"),
        ("{7 9}", "unparsable"),
        ("7 9</think>7 9", "unparsable"),
    ],
)
def test_a_set_has_no_order_and_nothing_twice(text: str, verdict: Verdict) -> None:
    assert exact_set(f"<think>7</think>{text}", "7 9") == verdict


def test_the_empty_set_has_a_name() -> None:
    assert exact_set("<think></think>none", "none") == "correct"
    assert exact_set("<think></think>7", "none") == "wrong"
    assert exact_set("<think></think>7", "seven") == "error"


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("sorting", {"length": 1}, "2 <= length"),
        ("sorting", {"length": 4, "threads": 5}, "2 <= threads <= length=4"),
        ("set_intersection", {"size": 1}, "2 <= size"),
        ("set_intersection", {"shared_min": 0.8}, "shared_min <= shared_max"),
        ("set_intersection", {"below": 40}, "need 58 numbers, below=40 has fewer"),
    ],
)
def test_bad_options_are_one_line(name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        make_task(name, options)
