"""Every command that README and docs show names what exists, composes, and fits the ranks it is shown with."""

import argparse
import importlib
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from conftest import ROOT
from docs_examples.balance import Balance
from shown_commands import COMMANDS, Shown, commands_in, of
from test_config import TASK_OPTIONS

from apr_train import compose
from apr_train.config import Config
from apr_train.self_train import check as check_self_training
from apr_train.tasks.base import TaskError
from apr_train.validate import check_model_folder, validate
from rewards import build
from rollout.options import read_options

HYDRA = ("train.py", "self_train.py", "evaluate.py")
SBATCH = tuple(file.name for file in (ROOT / "slurm").glob("*.sbatch"))
NOT_COMPOSED = {
    "--multirun": "Hydra composes each job of a sweep itself; tests/slurm runs one",
    "-m": "the same, in short",
}
"""Words of a command that no test here can compose, and why."""
NOT_PARSED = {
    "tests/bad_inputs.py": "takes no arguments, and writes docs/errors.md; tests/test_bad_inputs.py compares them",
    "tests/soak.py": "takes minutes; only that it exists is checked",
}
COMPOSED = [shown for shown in of(*HYDRA, *SBATCH) if not NOT_COMPOSED.keys() & set(shown.words)]
PARSED = [shown for shown in COMMANDS if shown.script not in ("", *NOT_PARSED) and shown not in of(*HYDRA, *SBATCH)]


@pytest.fixture(autouse=True)
def example_term_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/howto/reward_term.md shows commands of a term that the reader has just added."""
    monkeypatch.setitem(build.KINDS, "balance", Balance)
    monkeypatch.chdir(ROOT)


def composed(shown: Shown) -> Config:
    """A command's configuration, wherever it is run: whether model folders are there is another test's."""
    return loaded(tuple(shown.overrides))


@cache
def loaded(overrides: tuple[str, ...]) -> Config:
    with patch.object(compose, "check_model_folder"):
        return compose.load(overrides)


def test_commands_are_found_at_all() -> None:
    pages = {shown.page for shown in COMMANDS}
    assert {"README.md", "slurm/README.md", "docs/quickstart.md", "docs/reproduce/npr.md"} <= pages
    assert len(COMPOSED) >= 50
    assert len(PARSED) >= 15


def test_a_command_is_read_as_a_shell_would() -> None:
    text = "    torchrun --nproc-per-node 2 scripts/train.py a=1 \\\n      'b=[2]' ~c   # a remark\n\n    x = make it\n"
    (shown,) = commands_in(text, "p.md")
    assert (shown.script, shown.overrides, shown.ranks) == ("scripts/train.py", ["a=1", "b=[2]", "~c"], 2)
    (job,) = commands_in("```\nsbatch --nodes=3 --gpus-per-node=8 slurm/serve_sampler.sbatch a=1\n```\n", "p.md")
    assert (job.ranks, job.overrides) == (16, ["a=1"])


@pytest.mark.parametrize("shown", COMPOSED, ids=str)
def test_a_training_command_composes_and_fits_its_ranks(shown: Shown) -> None:
    config = composed(shown)
    if config.cluster.launcher == "none":
        validate(config, ranks=shown.ranks)
    if "self_train" in shown.script:
        check_self_training(config, ranks=shown.ranks)


@pytest.mark.parametrize("shown", COMPOSED, ids=str)
def test_a_training_command_gives_its_task_options_that_fit(shown: Shown) -> None:
    data = composed(shown).data
    read_options(data.task, TASK_OPTIONS[data.task], data.options, TaskError)


@pytest.mark.parametrize("shown", COMPOSED, ids=str)
def test_a_training_command_starts_from_a_model_the_reader_can_have(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From scratch, from the hub, fetched by a script, or left by a command of the same page or the quick start."""
    model = composed(shown).model
    named = {f"outputs/{o.removeprefix('name=')}" for other in COMPOSED for o in other.overrides if "name=" in o[:5]}
    named |= {"outputs/quickstart/ours", *(f"outputs/{e.stem}" for e in (ROOT / "configs/experiment").glob("*.yaml"))}
    fetched = re.findall(r"^FOLDER = Path\(\"(.+)\"\)$", (ROOT / "scripts/fetch_smollm2.py").read_text(), re.MULTILINE)
    assert len(fetched) == 1
    left = model.path and any(model.path in (f"{run}/{part}" for part in PARTS) for run in named)
    if model.path not in fetched and not left:
        monkeypatch.chdir(tmp_path)
        check_model_folder(model)


PARTS = ("sft", "rl", "round1/model")
"""Model folders that a run leaves in its own."""


class ParsedError(Exception):
    """The arguments were read; what the script would do next is left out."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a script once argparse has read all of its arguments; it exits with 2 where it cannot."""
    depth = 0

    def wrapped(original: Any) -> Any:
        def parse(self: argparse.ArgumentParser, *given: Any, **named: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                read = original(self, *given, **named)
            finally:
                depth -= 1
            if depth:
                return read
            left = read[1] if isinstance(read, tuple) else []
            raise ParsedError([word for word in left if word.startswith("-")])

        return parse

    for name in ("parse_args", "parse_known_args", "parse_intermixed_args", "parse_known_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, wrapped(getattr(argparse.ArgumentParser, name)))


@pytest.mark.parametrize("shown", PARSED, ids=str)
@pytest.mark.usefixtures("only_parse")
def test_a_scripts_arguments_are_its_own(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(shown.script.removesuffix(".py").replace("/", "."))
    monkeypatch.setattr(sys, "argv", [shown.script, *shown.arguments])
    with pytest.raises(ParsedError) as parsed:
        module.main()
    assert parsed.value.args[0] == []
    if Path(shown.script).name == "doctor.py":
        compose.load(shown.overrides)


@pytest.mark.parametrize("shown", COMMANDS, ids=str)
def test_what_a_command_runs_is_there(shown: Shown) -> None:
    if shown.program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in shown.words[1:] if "=" not in word} <= targets
    else:
        assert (ROOT / shown.script).is_file()


def test_every_exception_is_needed() -> None:
    used = {word for shown in COMMANDS for word in shown.words}
    assert used & NOT_COMPOSED.keys()
    assert NOT_PARSED.keys() <= {shown.script for shown in COMMANDS} | {"tests/soak.py", "tests/bad_inputs.py"}
