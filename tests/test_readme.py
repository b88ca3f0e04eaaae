"""Every command the README shows exists, composes and names real files."""

import re
import shlex
from pathlib import Path

import pytest

from apr_train.compose import load
from apr_train.validate import validate

README = (Path(__file__).parent.parent / "README.md").read_text()
# Indented blocks are commands; a backslash continues the line, two spaces and # start a remark.
LINES = [line.split("  #")[0].strip() for line in README.replace("\\\n", " ").splitlines() if line.startswith("    ")]


@pytest.mark.parametrize("command", [line for line in LINES if "scripts/train.py" in line])
def test_a_training_command_composes_and_is_valid(command: str) -> None:
    words = shlex.split(command)
    ranks = int(words[words.index("--nproc-per-node") + 1]) if "--nproc-per-node" in words else 1
    overrides = [word for word in words[words.index("scripts/train.py") + 1 :] if "=" in word]
    validate(load(overrides), ranks=ranks)


def test_training_commands_are_shown_at_all() -> None:
    assert sum("scripts/train.py" in line for line in LINES) >= 6


def test_make_targets_exist(root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    shown = {line.split()[1] for line in LINES if line.startswith("make ")}
    assert {"quickstart", "test"} <= shown <= targets


def test_files_and_links_exist(root: Path) -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", README)
    scripts = re.findall(r"scripts/\w+\.py", README)
    missing = [name for name in (*linked, *scripts) if not (root / name).exists()]
    assert not missing
