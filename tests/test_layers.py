"""Imports go one way, and heavy libraries stay in their one place: read off the sources."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatch

import pytest
from conftest import ROOT

PACKAGES = ("rollout", "rewards", "apr_train", "scripts")
SOURCES = [file for package in (*PACKAGES, "tests") for file in (ROOT / package).rglob("*.py")]
FILES = sorted(str(file.relative_to(ROOT)) for file in SOURCES)

FORBIDDEN = {
    "rollout": ("rewards", "apr_train", "scripts", "tests"),
    "rewards": ("apr_train", "scripts", "tests", "torch", "transformers"),
    "apr_train": ("scripts", "tests"),
    "scripts": ("tests",),
}
"""What a package may never import: rollout <- rewards <- apr_train <- scripts."""

HOMES = {
    "vllm": ("rollout/engines/vllm*.py",),
    "trl": ("apr_train/arguments.py", "apr_train/grpo_trainer.py", "apr_train/sft.py"),
    "deepspeed": ("apr_train/run.py", "apr_train/weight_sync.py"),
    "peft": ("apr_train/lora.py",),
    "treequest": ("rollout/strategies/tree_search.py",),
    "hydra": ("apr_train/compose.py", "scripts/*.py"),
    "wandb": ("apr_train/logg*.py",),
    "wandb_workspaces": ("apr_train/logg*.py",),
    "tensorboard": ("apr_train/logg*.py",),
}
"""Where each heavy library lives. Adding a file here is a decision, not a repair."""


def breaches(path: str, source: str) -> Iterator[str]:
    """What a file does that it may not, one line each."""
    tree = ast.parse(source)
    if not ast.get_docstring(tree):
        yield "does not start with a docstring that says its one job"
    for node in ast.walk(tree):
        for module in imported(node, path):
            yield from misplaced(path, module)


def imported(node: ast.AST, path: str) -> Iterator[str]:
    """Full names of the modules that a statement imports, by `import_module("...")` too."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        here = path.removesuffix(".py").split("/")
        start = here[: len(here) - node.level] if node.level else []
        module = ".".join([*start, *([node.module] if node.module else [])])
        yield from (f"{module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and name_of(node.func).rpartition(".")[2] in ("import_module", "__import__"):
        yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))


def misplaced(path: str, module: str) -> Iterator[str]:
    package, top = path.split("/")[0], module.split(".")[0]
    if top in FORBIDDEN.get(package, ()):
        yield f"{package} may not import {top}"
    if top == "torch" and package == "rollout" and not path.startswith("rollout/engines/"):
        yield "rollout may import torch in rollout/engines only"
    if package != "tests" and top in HOMES and not any(fnmatch(path, home) for home in HOMES[top]):
        yield f"{top} belongs in {', '.join(HOMES[top])}"


def name_of(function: ast.expr) -> str:
    """`torch.load` for that call; empty for anything but dotted names."""
    return ast.unparse(function) if isinstance(function, ast.Name | ast.Attribute) else ""


@pytest.mark.parametrize("path", FILES)
def test_every_file_keeps_to_its_layer(path: str) -> None:
    assert list(breaches(path, (ROOT / path).read_text())) == []


@pytest.mark.parametrize(
    ("path", "line", "breach"),
    [
        ("rollout/tokens.py", "from rewards.verdict import Verdict", "rollout may not import rewards"),
        ("rollout/tokens.py", "import apr_train.config as c", "rollout may not import apr_train"),
        ("rollout/dialects/base.py", "from ...rewards import verdict", "rollout may not import rewards"),
        ("rollout/tokens.py", "import torch", "rollout may import torch in rollout/engines only"),
        ("rewards/reward.py", "def f():\n    from apr_train import config", "rewards may not import apr_train"),
        ("rewards/reward.py", "import torch.nn", "rewards may not import torch"),
        ("apr_train/run.py", "import scripts.train", "apr_train may not import scripts"),
        ("apr_train/run.py", "import vllm", "vllm belongs in rollout/engines/vllm*.py"),
        ("apr_train/run.py", "import_module('vllm.v1')", "vllm belongs in rollout/engines/vllm*.py"),
        ("rollout/orchestrator.py", "from vllm import LLM", "vllm belongs in rollout/engines/vllm*.py"),
        ("apr_train/packing.py", "from trl import GRPOTrainer", f"trl belongs in {', '.join(HOMES['trl'])}"),
        ("apr_train/packing.py", "import deepspeed", f"deepspeed belongs in {', '.join(HOMES['deepspeed'])}"),
        ("apr_train/config.py", "import hydra", f"hydra belongs in {', '.join(HOMES['hydra'])}"),
        ("scripts/train.py", "import wandb", f"wandb belongs in {', '.join(HOMES['wandb'])}"),
    ],
)
def test_a_breach_is_seen(path: str, line: str, breach: str) -> None:
    assert list(breaches(path, f'"""One job."""\n{line}\n')) == [breach]


def test_a_missing_docstring_is_seen() -> None:
    assert list(breaches("rollout/x.py", "import os\n")) == ["does not start with a docstring that says its one job"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("rollout/engines/vllm_inprocess.py", "import vllm, torch"),
        ("apr_train/run.py", "from rewards.reward import Reward\nfrom rollout import engine"),
        ("scripts/train.py", "import hydra, torch"),
        ("rollout/dialects/base.py", "from . import sequential\nfrom ..tokens import Tokens"),
        ("tests/test_x.py", "import vllm"),
    ],
)
def test_what_is_allowed_passes(path: str, line: str) -> None:
    assert list(breaches(path, f'"""One job."""\n{line}\n')) == []
