"""Every command that README, docs/rewards.md and docs/lora.md show exists, composes and names real files."""

import re
import shlex
from pathlib import Path

import pytest
from test_config import TASK_OPTIONS

from apr_train import compose
from apr_train.config import Config
from apr_train.tasks.base import TaskError
from apr_train.validate import check_model_folder, validate
from rollout.options import read_options

README = (Path(__file__).parent.parent / "README.md").read_text()
# Indented blocks are commands; a backslash continues the line, two spaces and # start a remark.
DOCS = Path(__file__).parent.parent / "docs"
SHOWN = README + (DOCS / "rewards.md").read_text() + (DOCS / "lora.md").read_text()
LINES = [line.split("  #")[0].strip() for line in SHOWN.replace("\\\n", " ").splitlines() if line.startswith("    ")]


TRAINING = [line for line in LINES if "scripts/train.py" in line]


def composed(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, int]:
    """A command's configuration and ranks, wherever it is run: whether model folders are there is another test's."""
    monkeypatch.setattr(compose, "check_model_folder", lambda model: None)
    words = shlex.split(command)
    ranks = int(words[words.index("--nproc-per-node") + 1]) if "--nproc-per-node" in words else 1
    overrides = [word for word in words[words.index("scripts/train.py") + 1 :] if "=" in word]
    return compose.load(overrides), ranks


@pytest.mark.parametrize("command", TRAINING)
def test_a_training_command_composes_and_is_valid(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, ranks = composed(command, monkeypatch)
    validate(config, ranks=ranks)


@pytest.mark.parametrize("command", TRAINING)
def test_a_training_command_gives_its_task_options_that_fit(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = composed(command, monkeypatch)[0].data
    read_options(data.task, TASK_OPTIONS[data.task], data.options, TaskError)


@pytest.mark.parametrize("command", TRAINING)
def test_a_training_command_starts_from_a_model_the_reader_can_have(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path
) -> None:
    model = composed(command, monkeypatch)[0].model
    monkeypatch.chdir(tmp_path)
    written = re.findall(r"^FOLDER = Path\(\"(.+)\"\)$", (root / "scripts/fetch_smollm2.py").read_text(), re.MULTILINE)
    assert len(written) == 1
    if model.path not in written:
        check_model_folder(model)  # made from scratch, or the hub's to find


@pytest.mark.parametrize("command", [line for line in LINES if "scripts/doctor.py" in line])
def test_a_doctor_command_names_a_configuration_there_is(command: str) -> None:
    compose.load([word for word in shlex.split(command) if "=" in word])


def test_training_commands_are_shown_at_all() -> None:
    assert len(TRAINING) >= 6


def test_the_table_of_groups_lists_every_option_that_is_shipped() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ((?:`\w+` ?)+)", README, re.MULTILINE)
    listed = {group: sorted(re.findall(r"\w+", options)) for group, options in rows}
    shipped = {group.name: sorted(f.stem for f in group.glob("*.yaml")) for group in compose.CONFIGS.glob("*/")}
    assert listed == shipped


def test_make_targets_exist(root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    shown = {line.split()[1] for line in LINES if line.startswith("make ")}
    assert {"quickstart", "test"} <= shown <= targets


def test_files_and_links_exist(root: Path) -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", README)
    scripts = re.findall(r"scripts/\w+\.py", README)
    missing = [name for name in (*linked, *scripts) if not (root / name).exists()]
    assert not missing
