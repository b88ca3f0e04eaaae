"""Rollouts at the command line: a run's folder is enough, a terminal is enough, and a slip is one line."""

import random
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from helpers import toy_tokens
from made_rollouts import HOSTILE, forked, hostile_text, many
from rich.console import Console
from test_viewer import data_of, random_ones, record
from trees import grow, judged

from apr_train.stored import line_of, recorded
from rollout.viewer import Recorded, print_trees
from rollout.viewer.pieces import shown_lines
from rollout.viewer.terminal import lane_name, lanes
from scripts.view_rollouts import main

# The terminal


def test_lanes_of_characters_by_hand() -> None:
    # a root of 20, threads of 30 and 50, then 20: at 90 columns a token is a column
    assert lanes(grow(20, [[30], [50]], 20), 90) == [
        f"{'tokens':<16}0{90:>89}",
        f"{'root':<16}{'#' * 20}{'.' * 50}{'#' * 20}",
        f"{'  1.1':<16}{' ' * 20}{'=' * 30}{' ' * 40}",
        f"{'  1.2':<16}{' ' * 20}{'#' * 50}{' ' * 20}",
    ]
    assert lane_name((0, 2, 1, 1)) == "thread 1.2 / 2.1" and lane_name(()) == "root"


def printed(recorded: list[Recorded], decode: Any = None) -> str:
    out = StringIO()
    print_trees(recorded, decode, Console(file=out, width=80, markup=False, highlight=False))
    return out.getvalue()


def test_a_terminal_of_80_columns_shows_hostile_text_and_obeys_none_of_it() -> None:
    trajectory = replace(forked(random.Random(1), HOSTILE[-1], 3, 30), dialect=HOSTILE[-1])
    trees = [record(trajectory, flaw=HOSTILE[-1], terms={HOSTILE[-1]: 1.0}), *map(record, random_ones(4))]
    for decode in (hostile_text, None):
        said = printed(trees, decode)
        assert max(map(len, said.splitlines())) <= 80
        assert all(c.isprintable() or c == "\n" for c in said)
    assert "\\x1b[2J" in printed(trees, hostile_text)


# The command


def run_folder(folder: Path, count: int = 16) -> Path:
    """A run's folder: rollouts of two ranks, and the tokenizer it started from."""
    tokens = toy_tokens()
    tokens.tokenizer.save_pretrained(folder / "start")
    for rank in range(2):
        lines = []
        for each in many(count, seed=rank):
            scored = judged(each.trajectory, each.verdict)  # pyright: ignore[reportArgumentType]
            lines.append(line_of(recorded(each.step, scored, 1.0, 0.0, each.terms)))
        (folder / f"rollouts-rank{rank}.jsonl").write_text("".join(lines))
    return folder


def test_a_runs_folder_is_all_its_ranks_and_its_own_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = run_folder(tmp_path / "run"), tmp_path / "page.html"
    assert main([str(run), "--out", str(out)]) == 0
    assert "32 rollouts" in capsys.readouterr().out
    found = data_of(out.read_text())
    assert len(found["step"]) == 32
    decode = toy_tokens().decode
    assert dict(zip(found["ids"], found["pieces"], strict=True)) == {i: shown_lines(decode([i])) for i in found["ids"]}
    assert main([str(run / "rollouts-rank0.jsonl"), "--out", str(out)]) == 0
    assert data_of(out.read_text())["pieces"] and "token ids" not in capsys.readouterr().out


def test_without_a_tokenizer_ids_are_shown_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run_folder(tmp_path / "run") / "rollouts-rank0.jsonl"
    alone, out = tmp_path / "alone.jsonl", tmp_path / "page.html"
    alone.write_bytes(file.read_bytes())
    assert main([str(alone), "--out", str(out)]) == 0
    found = data_of(out.read_text())
    assert found["pieces"] == [f"{token} " for token in found["ids"]]
    assert "token ids for text" in capsys.readouterr().out


def test_the_terminal_prints_as_many_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run")
    assert main([str(run), "--terminal", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("L_critical") == 3 and "3 of 3" in out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["{run}", "--tokenizer", "{empty}"], "cannot be read"),
        (["{run}", "--tokenizer", "no-such-folder"], "is no folder"),
        (["{empty}"], "holds no rollouts"),
        (["{run}/rollouts-rank7.jsonl"], "cannot be read"),
        (["{run}", "--out", "{empty}"], "it is a folder"),
        (["{run}", "--terminal", "0"], "one trajectory at least"),
        (["{run}/start/tokenizer.json"], "is no recorded rollout"),
    ],
)
def test_a_slip_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str) -> None:
    run, empty = run_folder(tmp_path / "run"), tmp_path / "empty"
    empty.mkdir()
    assert main([word.format(run=run, empty=empty) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and reason in said and said.count("\n") == 1
