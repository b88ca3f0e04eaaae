"""What an imported corpus is for: any dialect trains on it, the task splits it, and the command tells what it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from corpus_rows import (
    APR_RUN,
    APR_TRACE,
    CHILD_0,
    CHILD_1,
    FINAL,
    MULTIVERSE,
    NPR,
    PARALLEL_R1,
    PARALLEL_R1_PROMPT,
    SNAPSHOT,
    THREADWEAVER,
    chat,
)
from datasets import Dataset

from apr_train.corpora import LAYOUTS, import_corpus
from apr_train.corpora.base import CorpusError, Drop, Worked
from apr_train.corpora.roundtrip import Checker
from apr_train.tasks import make_task
from apr_train.tasks.base import TaskError
from rollout.demonstration import Block, Demonstration
from rollout.dialects import DIALECTS
from scripts.import_corpus import main

TAGGED = [name for name in DIALECTS if name not in ("apr", "asyncthink", "recursive")]
ROWS = {
    "threadweaver": {"qwen_text": THREADWEAVER},
    "multiverse": {"text": MULTIVERSE},
    "npr": {"problem": "q?", "trajectory": NPR},
    "parallel_r1": {"problem": PARALLEL_R1_PROMPT, "text": PARALLEL_R1},
}


def kept(layout: str, row: Any) -> Worked:
    worked = LAYOUTS[layout].read(row)
    assert isinstance(worked, Worked), worked
    return worked


@pytest.mark.parametrize("dialect", TAGGED)
def test_a_corpus_of_any_layout_can_be_trained_in_any_dialect_of_tags(dialect: str) -> None:
    checker = Checker(dialect)
    flaws = {layout: checker.why_not(kept(layout, row)) for layout, row in ROWS.items()}
    assert flaws == dict.fromkeys(ROWS)


def test_an_imported_search_can_be_trained_in_the_dialect_of_searches() -> None:
    assert Checker("apr").why_not(kept("apr", {"trace_dict": APR_TRACE})) is None


def test_threadweaver_rows_come_back_in_their_own_dialect_as_they_were_published() -> None:
    checker = Checker("threadweaver")
    script = checker.dialect.write(kept("threadweaver", ROWS["threadweaver"]).demonstration)
    texts = {name: [checker.tokens.decode(turn) for turn in turns] for name, turns in script.items()}
    assert texts[(0, 1)] == [" It is 6,\n\nso 36.\n</Thread>"]
    assert texts[()][1] == "\n\nSum 117.\n</think>\n\n\\boxed{117}<|eos|>"


def test_a_dialect_that_cannot_write_a_row_says_why() -> None:
    why = Checker("recursive").why_not(kept("threadweaver", ROWS["threadweaver"]))
    assert why is not None
    assert why.startswith("DialectError: dialect recursive needs the task of every thread")
    why = Checker("npr").why_not(kept("apr", {"trace_dict": APR_TRACE}))
    assert why is not None
    assert "not search traces" in why


def test_a_row_that_is_read_otherwise_than_it_was_written_is_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    checker, worked = Checker("npr"), kept("npr", ROWS["npr"])
    write = checker.dialect.write
    with monkeypatch.context() as patch:
        patch.setattr(checker.dialect, "check", lambda trajectory: "a flaw")
        assert checker.why_not(worked) == "a flaw"
    with monkeypatch.context() as patch:
        patch.setattr(checker.dialect, "write", lambda demo: write(demo) | {(0, 1): [*write(demo)[(0, 1)], (1, 2)]})
        assert checker.why_not(worked) == "a turn ended early"
    with monkeypatch.context() as patch:
        patch.setattr(checker.dialect, "write", lambda demo: {name: turns[:1] for name, turns in write(demo).items()})
        assert (checker.why_not(worked) or "").startswith("EngineError")


def test_a_tokenizer_without_a_row_s_characters_is_a_reason_not_an_error() -> None:
    from apr_train.model import character_tokenizer

    why = Checker("npr", tokenizer=character_tokenizer()).why_not(Worked("1+1?", "2", Demonstration(("é",), "2")))
    assert why is not None
    assert why.startswith("TagError: this tokenizer cannot spell")


# -- the task ----------------------------------------------------------------------------------------------------------


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(k: int) -> dict[str, str]:
    return {"qwen_text": THREADWEAVER.replace("How far?", f"How far is {k}?")}


def test_the_task_gives_both_forms_and_holds_problems_out_by_their_text(tmp_path: Path) -> None:
    plain = {"qwen_text": chat("1?", "<think></think>\\boxed{1}")}
    again = {"qwen_text": numbered(3)["qwen_text"].replace("Split.", "Cut.")}  # another solution of problem 3
    path = lines(tmp_path / "train.jsonl", [*map(numbered, range(40)), *map(numbered, range(9)), plain, again])
    task = make_task("corpus", {"path": path, "heldout_share": 0.25})
    with pytest.raises(TaskError, match="the corpus has") as error:
        task.problems("train", 99, 0)
    count = int(str(error.value).rsplit(" ", 1)[1])
    train, held = task.problems("train", count, 0), task.problems("heldout", 42 - count, 0)
    assert 20 < count < 40
    assert len({p.id for p in train + held}) == 42
    assert not {p.prompt for p in train} & {p.prompt for p in held}
    problem = next(p for p in train if p.parts == 2)
    threads = Block(((" dx", " It is 6,\n\nso 36."), (" dy", " 81.")))
    shown = task.demonstration(problem, "parallel")
    assert isinstance(shown, Demonstration)
    assert shown.reasoning[1] == threads
    assert task.demonstration(problem, "sequential") == Demonstration(
        (shown.reasoning[0], " It is 6,\n\nso 36.\n 81.\n", "\n\nSum 117.\n"), shown.answer
    )
    assert task.verifier(shown.answer, problem.answer) == "correct"
    flat = next(p for p in train + held if p.parts == 1)
    with pytest.raises(TaskError, match="only the sequential form"):
        task.demonstration(flat, "parallel")


def test_an_imported_search_has_one_form_and_its_own_verifier(tmp_path: Path) -> None:
    path = lines(tmp_path / "train.jsonl", [{"text": text} for text in (SNAPSHOT, FINAL, CHILD_0, CHILD_1)])
    task = make_task("corpus", {"path": path, "layout": "apr", "heldout_share": 0.0})
    (problem,) = task.problems("train", 1, 0)
    assert task.demonstration(problem, "parallel") == APR_RUN
    assert task.verifier(APR_RUN.transcript(), problem.answer) == "correct"
    with pytest.raises(TaskError, match=r"sft\.parallel_share=1"):
        task.demonstration(problem, "sequential")


def test_a_corpus_that_cannot_serve_says_what_to_change(tmp_path: Path) -> None:
    path = lines(tmp_path / "one.jsonl", [numbered(1)])
    with pytest.raises(TaskError, match=r"no row of layout npr: no text in the columns of this layout \(1\)"):
        make_task("corpus", {"path": path, "layout": "npr"})
    with pytest.raises(TaskError, match=r"data\.options\.path: a file"):
        make_task("corpus", {}).problems("train", 1, 0)
    with pytest.raises(TaskError, match="heldout_share"):
        make_task("corpus", {"path": path, "heldout_share": 1.0})


# -- files and the command ---------------------------------------------------------------------------------------------


def test_a_file_of_any_kind_is_read_and_a_bad_line_is_only_a_dropped_row(tmp_path: Path) -> None:
    rows = [numbered(k) for k in range(3)]
    array, table, folder = tmp_path / "rows.json", tmp_path / "rows.parquet", tmp_path / "folder"
    array.write_text(json.dumps(rows))
    Dataset.from_list(rows).to_parquet(str(table))
    folder.mkdir()
    lines(folder / "train.jsonl", rows)
    for path in (array, table, folder):
        assert import_corpus(str(path), "threadweaver").report.kept == 3
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(json.dumps(rows[0]).encode() + b"\n{\n\xff\n\n" + b"[" * 100_000 + b"\n" + b"9" * 9999 + b"\n")
    report = import_corpus(str(broken), "threadweaver").report
    assert (report.kept, report.rows, report.first) == (1, {Drop.NOT_A_ROW: 5}, {Drop.NOT_A_ROW: "broken.jsonl:2"})


def test_a_wrong_file_is_one_line(tmp_path: Path) -> None:
    for name, text in (("a.parquet", "PAR1 not"), ("a.json", "{}"), ("a.csv", "a")):
        (tmp_path / name).write_text(text)
    for name, why in {
        "a.parquet": "no sound Parquet",
        "a.json": "no JSON array",
        "a.csv": "ends in none of",
        "no.jsonl": "there is no file",
        "no/where": "there is no file",
    }.items():
        with pytest.raises(CorpusError, match=why):
            import_corpus(str(tmp_path / name), "threadweaver")
    with pytest.raises(CorpusError, match="cannot load dataset nobody/nothing"):
        import_corpus("nobody/nothing", "threadweaver")
    with pytest.raises(CorpusError, match="did you mean 'npr'"):
        import_corpus(str(tmp_path / "a.json"), "nppr")


def test_the_command_shows_both_reports_within_80_columns_and_saves_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a_rather_long_name_of_a_corpus_file_that_somebody_chose.jsonl"
    path, out = lines(tmp_path / name, [numbered(1), {}, numbered(2)]), tmp_path / "report.json"
    assert main([path, "--layout", "threadweaver", "--dialect", "multiverse", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert Drop.NO_TEXT[:20] in shown
    saved = json.loads(out.read_text())
    assert saved["import"]["kept"] == saved["multiverse"]["kept"] == 2
    assert main([path, "--layout", "threadweaver", "--dialect", "recursive"]) == 1
    assert main([str(tmp_path / "none.jsonl"), "--layout", "npr"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no file")
