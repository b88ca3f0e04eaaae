"""Tasks that take their problems apart: the parts' right answers make the whole one, and ratings see no gold answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_train.tasks import make_task
from apr_train.tasks.base import Rating, Splittable, Task

NAMES = ("arithmetic", "sorting", "set_intersection")


def solved(task: Task, name: str, text: str) -> str:
    """The right answer to a part, by a second way."""
    if name == "sorting":
        return " ".join(sorted(text.removeprefix("Sort: ").split(), key=int))
    if name == "set_intersection":
        one, other = (side.split() for side in text.split(" & "))
        return " ".join(word for word in one if word in other) or "none"
    head, _, steps = text.removesuffix("=").partition("*")
    start, _, stride = head[1:].partition("+")
    return f"A{(int(start) + int(steps) * int(stride or 1)) % 10}"


@pytest.mark.parametrize("name", NAMES)
def test_right_parts_make_the_right_whole(name: str) -> None:
    task = make_task(name, {})
    assert isinstance(task, Splittable)
    for problem in task.problems("heldout", 20, 0):
        texts = task.split(problem)
        whole = task.merge(problem, [solved(task, name, text) for text in texts])
        assert task.verifier(f"<think></think>{whole}", problem.answer) == "correct", (problem, texts, whole)
        if isinstance(task, Rating):
            assert task.rate(problem.prompt, problem.answer) == 1.0


def test_ratings_by_hand() -> None:
    sorting, sets = make_task("sorting", {}), make_task("set_intersection", {})
    assert isinstance(sorting, Rating) and isinstance(sets, Rating)
    assert sorting.rate("Sort: 3 1 3", "1 3") == pytest.approx(2 / 3)
    assert sorting.rate("Sort: 3 1 3 2", "3 1 2 3") == 0.75 and sorting.rate("Sort: 3 1", "one three") == 0.0
    assert sets.rate("7 3 9 & 9 1 7", "7 3") == pytest.approx(1 / 3)
    assert sets.rate("7 3 & 1 2", "none") == 1.0 and sets.rate("7 3 & 1 3", "none") == 0.5


@given(st.text(max_size=40) | st.lists(st.integers(-5, 10**20), max_size=60).map(lambda n: " ".join(map(str, n))))
def test_no_answer_breaks_a_rating_or_a_merge(answer: str) -> None:
    for name in NAMES:
        task = make_task(name, {})
        assert isinstance(task, Splittable)
        problem = task.problems("heldout", 1, 0)[0]
        assert isinstance(task.merge(problem, [answer, answer]), str)
        if isinstance(task, Rating):
            assert 0.0 <= task.rate(problem.prompt, answer) <= 1.0
