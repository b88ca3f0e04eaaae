"""What users get wrong is one line that says what to do, word for word; docs/errors.md shows the same lines."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from bad_inputs import REGENERATE, Case, cases, page
from bad_models import RAN

from rollout.errors import UserError
from rollout.shown import one_line

CASES = cases()
LONGEST = 200
LISTED = re.compile(r"(?<=\(known: ).*|(?<=use one of ).*")
"""Names to choose from, at the end of a line: as many as there are."""
WHOLE = {case.name: case for case in CASES if case.name in ("misspelt key", "values of a sweep", "output is a file")}


def ids(case: Case) -> str:
    return f"{case.group.split(' ')[0].lower()}-{case.name.replace(' ', '_')}"


@pytest.fixture(autouse=True)
def an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def told(text: str) -> str:
    """An error without what differs from run to run: the port of a server that a test started."""
    return re.sub(r"(?<=http://127\.0\.0\.1:)\d{4,5}(?=/)", "8000", text)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_a_mistake_is_one_line_word_for_word(case: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        case.act()
    text = str(caught.value)
    assert told(text) == one_line(told(text)) == case.line  # nothing of it is lost, masked or folded when it is printed
    assert len(LISTED.sub("", text)) <= LONGEST
    assert str(tmp_path) not in text
    assert not (tmp_path / RAN).exists()  # what came with the input did not run


def test_no_two_cases_are_the_same() -> None:
    assert len({ids(case) for case in CASES}) == len(CASES) >= 50


def test_the_page_of_errors_is_not_stale(root: Path) -> None:
    assert (root / "docs/errors.md").read_text() == page(CASES), f"run {REGENERATE}"


@pytest.mark.parametrize("name", WHOLE)
def test_the_command_prints_that_line_alone_and_exits_with_2(name: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    command = [sys.executable, str(root / "scripts/train.py"), *WHOLE[name].overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {WHOLE[name].line}\n")


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_one_line_of_the_whole_command(root: Path, tmp_path: Path) -> None:
    """Libraries say much on stderr of their own while they load one."""
    from test_model import base_model

    base_model(tmp_path / "model", tied=True)
    config = tmp_path / "model/config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 16', '"intermediate_size": 32'))
    small = ["model.path=model", "model.max_context=64", "rollout.max_response_tokens=40", "rollout=torch"]
    command = [sys.executable, str(root / "scripts/train.py"), *small]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    (case,) = (case for case in CASES if case.name == "other shapes")
    assert (done.returncode, done.stderr) == (2, f"error: {case.line}\n")
