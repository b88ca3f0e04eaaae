"""Benchmarks of mathematics: files that are only evaluated, told apart by source, and never silently other ones."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import FOLDER, needs_files
from conftest import ROOT

from apr_train.compose import load
from apr_train.tasks import benchmarks as module
from apr_train.tasks import make_task
from apr_train.tasks.base import TaskError
from apr_train.tasks.benchmarks import BENCHMARKS, Benchmark, check, digest, from_file, from_hub
from apr_train.tasks.jsonl import Jsonl
from scripts import fetch_benchmarks

ROWS = [{"id": f"{name}-{n}", "problem": f"{name} {n}?", "answer": str(n)} for name in "ab" for n in range(3)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task_of(options: Mapping[str, Any]) -> Jsonl:
    task = make_task("jsonl", options)
    assert isinstance(task, Jsonl)
    return task


# --- held out only, several files ---------------------------------------------------------------------------------


def test_a_benchmark_is_whole_and_training_on_it_is_refused_by_name(tmp_path: Path) -> None:
    task = task_of({"path": write(tmp_path / "exam.jsonl", ROWS), "heldout_only": True})
    assert len(task.problems("heldout", 6, 0)) == task.size("heldout") == 6
    assert task.problems("train", 0, 0) == []
    with pytest.raises(TaskError, match=r"exam\.jsonl is for evaluation only"):
        task.problems("train", 1, 0)


def test_an_empty_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no heldout rows"):
        task_of({"path": write(tmp_path / "exam.jsonl", []), "heldout_only": True})


@pytest.mark.parametrize("other", [{"heldout_path": "h.jsonl"}, {"dataset": "d", "path": None, "heldout_split": "t"}])
def test_held_out_twice_over_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="heldout_only=true holds every row out"):
        task_of({"path": "exam.jsonl", "heldout_only": True} | other)


def test_figures_can_be_split_by_file_and_by_level(tmp_path: Path) -> None:
    easy, hard = ROWS[:3], [{**row, "level": 5} for row in ROWS[3:]]
    paths = [write(tmp_path / "easy.jsonl", easy), write(tmp_path / "hard.jsonl", hard)]
    task = task_of({"paths": paths, "heldout_only": True, "id_column": "id", "level_column": "level"})
    found = task.problems("heldout", 6, 1)
    assert Counter((p.meta["source"], p.meta.get("level")) for p in found) == {("easy", None): 3, ("hard", "5"): 3}
    assert {p.id: p.meta["source"] for p in found}["b-2"] == "hard"
    with pytest.raises(TaskError, match=r"^easy, hard is for evaluation only"):
        task.problems("train", 1, 0)


def test_rows_without_ids_are_named_by_their_own_file(tmp_path: Path) -> None:
    paths = [write(tmp_path / "easy.jsonl", ROWS[:3]), write(tmp_path / "hard.jsonl", ROWS[3:])]
    task = task_of({"paths": paths, "heldout_only": True})
    assert {p.id for p in task.problems("heldout", 6, 0)} == {f"{s}:{n}" for s in ("easy", "hard") for n in (1, 2, 3)}


def test_path_and_paths_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="exactly one of"):
        task_of({"path": "a.jsonl", "paths": ["b.jsonl"]})


def test_several_files_train_too_and_say_where_a_problem_is_from(tmp_path: Path) -> None:
    paths = [write(tmp_path / "one.jsonl", ROWS[:3]), write(tmp_path / "two.jsonl", ROWS[3:])]
    task = task_of({"paths": paths, "heldout_share": 0.4})
    assert task.size("train") + task.size("heldout") == 6
    assert {p.meta["source"] for p in task.problems("train", task.size("train"), 0)} == {"one", "two"}


# --- the shipped configurations and the files they read -----------------------------------------------------------


def test_every_benchmark_has_a_configuration_that_is_for_evaluation_only() -> None:
    found: dict[str, dict[str, Any]] = {}
    for file in (ROOT / "configs/data").glob("*.yaml"):
        options = load([f"data={file.stem}"]).data.options
        if options.get("heldout_only"):
            found[file.stem] = options
    files = {name: Path(options["path"]).stem for name, options in found.items() if options["path"]}
    assert set(files.values()) == set(BENCHMARKS) - {"gsm8k_train"}
    assert set(found) - set(files) == {"math"}
    assert [Path(path).stem for path in found["math"]["paths"]] == [
        name for name in BENCHMARKS if name in files.values()
    ]


# --- fetching -----------------------------------------------------------------------------------------------------


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of two small benchmarks instead of the real ones."""
    monkeypatch.setattr(
        module,
        "BENCHMARKS",
        {
            name: Benchmark(3, digest([row for row in ROWS if row["id"][0] == name]), "hub/set", "test", "q", "a")
            for name in "ab"
        },
    )
    monkeypatch.setattr(fetch_benchmarks, "BENCHMARKS", module.BENCHMARKS)


def test_the_hash_is_over_id_problem_and_answer_in_order() -> None:
    # printf '["a", "b?", "\xc3\xa9"]\n' | sha256sum
    row = {"id": "a", "problem": "b?", "answer": "é"}
    assert digest([row]) == "5e1641d0816d6b8d9eb2d0aa916253c66442e80ea5f82d032b16753b73d7de44"
    assert digest([{"answer": "é", "level": "3", "id": "a", "problem": "b?"}]) == digest([row])
    assert digest(ROWS) != digest(ROWS[::-1])


@pytest.mark.usefixtures("known")
def test_local_files_are_copied_when_they_are_the_right_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, to = tmp_path / "source", tmp_path / "to"
    source.mkdir()
    write(source / "a.jsonl", [{**row, "more": 1} for row in ROWS[:3]])
    write(source / "b.jsonl", ROWS[3:])
    assert fetch_benchmarks.main(["--from", str(source), "--to", str(to)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["a"]["rows"] == 3
    assert from_file(to / "a.jsonl") == ROWS[:3]
    assert fetch_benchmarks.main(["--check", "--to", str(to)]) == 0


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("rows", "reason"),
    [(ROWS[:2], "has 2 rows and should have 3"), ([*ROWS[:2], {**ROWS[2], "answer": "7"}], "has other rows")],
)
def test_other_rows_are_not_taken_unless_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], reason: str
) -> None:
    write(tmp_path / "a.jsonl", rows)
    words = ["a", "--from", str(tmp_path), "--to", str(tmp_path / "to")]
    assert fetch_benchmarks.main(words) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
    assert fetch_benchmarks.main([*words, "--other"]) == 0
    assert "taken because of --other" in capsys.readouterr().out
    assert from_file(tmp_path / "to/a.jsonl") == rows


def test_a_wrong_name_and_a_missing_file_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch_benchmarks.main(["aime2", "aime24", "--from", str(tmp_path), "--to", str(tmp_path)]) == 2
    wrong, missing = capsys.readouterr().err.splitlines()
    assert "did you mean" in wrong
    assert "there is no file" in missing


@pytest.mark.parametrize(
    ("name", "row", "made"),
    [
        (
            "gsm8k_test",
            {"question": "Q?", "answer": "3 * 400 = <<3*400=1200>>1200\n#### 1,200"},
            {"id": "gsm8k_test-0", "problem": "Q?", "answer": "1200"},
        ),
        (
            "olympiadbench",
            {"question": "Q?", "final_answer": ["1", "3"]},
            {"id": "olympiadbench-0", "problem": "Q?", "answer": "1,3"},
        ),
        (
            "math500",
            {"problem": "Q?", "answer": "p - q", "level": 5, "solution": ".."},
            {"id": "math500-0", "problem": "Q?", "answer": "p - q", "level": "5"},
        ),
    ],
)
def test_the_hubs_columns_become_ours(
    monkeypatch: pytest.MonkeyPatch, name: str, row: dict[str, Any], made: dict[str, str]
) -> None:
    def rows(*_: object) -> Any:
        return iter([("hub:1", row)])

    monkeypatch.setattr(module, "read_dataset", rows)
    assert from_hub(name) == [made]


@needs_files
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_files_at_hand_are_the_measured_ones(name: str) -> None:
    assert FOLDER is not None
    check(name, from_file(FOLDER / f"{name}.jsonl"))
