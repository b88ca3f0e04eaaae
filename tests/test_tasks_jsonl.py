"""JSONL and dataset tasks: rows, splits and demonstrations, and file, line and reason for every bad row."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from apr_train.tasks import make_task
from apr_train.tasks.base import Problem, Task, TaskError
from rewards.verify.math import MathVerifier
from rollout.demonstration import Block, Demonstration

ROWS = [{"problem": f"What is {number} + 1?", "answer": number + 1} for number in range(60)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_rows_become_problems_and_the_hash_holds_some_out(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", ROWS)
    task = make_task("jsonl", {"path": path, "suffix": " Think.", "heldout_share": 0.3})
    sides = {split: len(_all(task, split)) for split in ("train", "heldout")}
    assert sum(sides.values()) == 60
    assert sides["heldout"] >= 5
    problem = next(problem for problem in _all(task, "train") if problem.id == f"sums:{int(problem.answer)}")
    assert problem.prompt == f"What is {int(problem.answer) - 1} + 1? Think."
    assert task.problems("train", 9, 0) == task.problems("train", 9, 0) != task.problems("train", 9, 1)
    assert isinstance(task.verifier, MathVerifier)


def _all(task: Task, split: Any) -> list[Problem]:
    """All problems of a split, whose size only the error tells."""
    with pytest.raises(TaskError) as caught:
        task.problems(split, 10**9, 0)
    return task.problems(split, int(str(caught.value).rsplit(" ", 1)[1]), 0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("", "empty line"),
        ("{", "not JSON"),
        ("[1]", "a row is an object, not list"),
        ({"problm": "x", "answer": "1"}, "no column 'problem'; did you mean 'problm'"),
        ({"problem": " ", "answer": "1"}, "column 'problem' is empty"),
        ({"problem": "x", "answer": ""}, "column 'answer' is empty"),
        ({"problem": "x", "answer": None}, "must be text or a number"),
        ({"problem": "x", "answer": True}, "must be text or a number"),
        ({"problem": "x", "answer": float("nan")}, "must be text or a number"),
        ({"problem": ["x"], "answer": "1"}, "must be text or a number"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_reason(tmp_path: Path, row: Any, reason: str) -> None:
    path = write(tmp_path / "bad.jsonl", [*ROWS[:2], row, *ROWS[2:]])
    with pytest.raises(TaskError, match=re.escape(f"{path}:3: ")) as caught:
        make_task("jsonl", {"path": path})
    assert reason in str(caught.value)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"problem": "x", "answer": "1"}\n{"problem": "\xe9", "answer": "1"}\n')
    with pytest.raises(TaskError, match=r"latin\.jsonl:2: not JSON"):
        make_task("jsonl", {"path": str(path)})


def test_an_id_used_twice_names_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "ids.jsonl", [{"id": "a", **row} for row in ROWS[:2]])
    with pytest.raises(TaskError, match=r"ids\.jsonl:2: id 'a' was already used at .*ids\.jsonl:1"):
        make_task("jsonl", {"path": path, "id_column": "id"})


def test_a_heldout_file_must_not_repeat_train(tmp_path: Path) -> None:
    train, held = write(tmp_path / "train.jsonl", ROWS[:5]), write(tmp_path / "held.jsonl", ROWS[5:8])
    task = make_task("jsonl", {"path": train, "heldout_path": held})
    assert [len(_all(task, split)) for split in ("train", "heldout")] == [5, 3]
    held = write(tmp_path / "held.jsonl", ROWS[4:8])
    with pytest.raises(TaskError, match=r"held\.jsonl:1: .*train\.jsonl:5"):
        make_task("jsonl", {"path": train, "heldout_path": held})


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no train rows"):
        make_task("jsonl", {"path": write(tmp_path / "empty.jsonl", [])})


def test_a_dataset_gives_its_splits(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", ROWS[:6])
    write(folder / "test.jsonl", ROWS[6:9])
    task = make_task("jsonl", {"dataset": str(folder), "heldout_split": "test"})
    assert [len(_all(task, split)) for split in ("train", "heldout")] == [6, 3]
    assert all("[test]:" in problem.id for problem in _all(task, "heldout"))
    with pytest.raises(TaskError, match="cannot load dataset"):
        make_task("jsonl", {"dataset": str(folder), "split": "nowhere"})


THREADS = {"threads": [["left", "1+1=2"], ["right", "2+2=4"]]}
WORKED = {"id": "t:1", "reasoning": ["Split. ", THREADS, "Sum 6."], "answer": r"\boxed{6}"}


def _demonstrated(tmp_path: Path, rows: list[Any]) -> Task:
    path = write(tmp_path / "t.jsonl", ROWS[:3])
    held = write(tmp_path / "h.jsonl", ROWS[3:4])
    worked = write(tmp_path / "worked.jsonl", rows)
    return make_task("jsonl", {"path": path, "heldout_path": held, "demonstrations": worked})


def test_demonstrations_are_found_by_id_or_problem_and_serve_both_forms(tmp_path: Path) -> None:
    plain = {"problem": ROWS[1]["problem"], "reasoning": ["1+1=2."], "answer": "2"}
    task = _demonstrated(tmp_path, [WORKED, plain])
    first, second, third = sorted(task.problems("train", 3, 0), key=lambda problem: problem.id)
    assert [first.parts, second.parts, third.parts] == [2, 1, None]
    block = Block((("left", "1+1=2"), ("right", "2+2=4")))
    assert task.demonstration(first, "parallel") == Demonstration(("Split. ", block, "Sum 6."), r"\boxed{6}")
    flat = Demonstration(("Split. ", "1+1=2\n2+2=4\n", "Sum 6."), r"\boxed{6}")
    assert task.demonstration(first, "sequential") == flat
    assert task.demonstration(second, "sequential") == Demonstration(("1+1=2.",), "2")
    with pytest.raises(TaskError, match="only the sequential form"):
        task.demonstration(second, "parallel")
    with pytest.raises(TaskError, match=r"no demonstration of problem t:3 in .*worked\.jsonl"):
        task.demonstration(third, "sequential")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reasoning": []}, "at least one piece"),
        ({"reasoning": "text"}, "at least one piece"),
        ({"reasoning": [5]}, "got 5"),
        ({"reasoning": [{"threads": [["one", "thread"]]}]}, "two threads or more"),
        ({"reasoning": [{"threads": [["a", "b"], ["a", 5]]}]}, "two threads or more"),
        ({"reasoning": [{"threads": [["a", "b"], ["a"]]}]}, "two threads or more"),
        ({"answer": ""}, "column 'answer' is empty"),
        ({"id": ""}, "column 'id' is empty"),
    ],
)
def test_a_bad_demonstration_is_named_by_file_line_and_reason(tmp_path: Path, change: Any, reason: str) -> None:
    with pytest.raises(TaskError, match=r"worked\.jsonl:2: ") as caught:
        _demonstrated(tmp_path, [{**WORKED, "id": "t:2"}, {**WORKED, **change}])
    assert reason in str(caught.value)


def test_two_demonstrations_of_one_problem_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"worked\.jsonl:2: a second demonstration"):
        _demonstrated(tmp_path, [WORKED, WORKED])
