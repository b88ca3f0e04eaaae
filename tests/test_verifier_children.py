"""The process that reads model text as mathematics: it holds no secret, no variable leads it, it is bounded."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.verify import math as math_module
from rewards.verify.math import MEMORY_BYTES, MathVerifier

CANARY = "canary-of-the-test-7f3a"
WORKER = Path(math_module.__file__).with_name("math_worker.py")
SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "VLLM_API_KEY", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The process id of a verifier's child, started by a parent that has secrets, open files and an odd PYTHONPATH."""
    shadow = tmp_path_factory.mktemp("shadow")
    (shadow / "math_verify.py").write_text("raise SystemExit('PYTHONPATH chose the verifier')")
    with pytest.MonkeyPatch.context() as patch, (shadow / "open").open("w") as parents:
        for name in SECRETS:
            patch.setenv(name, CANARY)
        patch.setenv("PYTHONPATH", str(shadow))
        os.set_inheritable(parents.fileno(), True)
        with MathVerifier(deadline_s=20) as verify:
            assert verify("72", "72") == "correct"
            process = verify._workers[0]._process  # pyright: ignore[reportPrivateUsage]
            assert process is not None
            yield process.pid


def test_the_child_is_given_two_variables_and_no_secret(child: int) -> None:
    given = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
    assert {line.partition("=")[0] for line in given if line} <= {"LD_LIBRARY_PATH", "OMP_NUM_THREADS"}
    assert CANARY not in "".join(given)


def test_the_child_inherits_no_file_of_the_parent(child: int) -> None:
    targets = {int(each.name): os.readlink(each) for each in Path(f"/proc/{child}/fd").iterdir()}
    assert all(target.startswith("pipe:") or target == "/dev/null" for target in targets.values()), targets


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("Max address space", MEMORY_BYTES),
        ("Max core file size", 0),
        ("Max open files", 32),
        ("Max processes", 0),
        ("Max file size", 0),
    ],
)
def test_the_child_cannot_raise_its_limits_again(child: int, name: str, most: int) -> None:
    found = re.search(rf"^{name}\s+(\d+)\s+(\d+)", Path(f"/proc/{child}/limits").read_text(), re.MULTILINE)
    assert found, name
    soft, hard = int(found[1]), int(found[2])
    assert soft == hard == most


def test_the_childs_cpu_time_ends_by_itself(child: int) -> None:
    found = re.search(r"^Max cpu time\s+(\d+)", Path(f"/proc/{child}/limits").read_text(), re.MULTILINE)
    assert found and int(found[1]) < 120


LOAD = f"""
import resource, subprocess
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("math_worker", {str(WORKER)!r})
worker = module_from_spec(spec)
spec.loader.exec_module(worker)
worker.limit(resource.RLIMIT_AS, {MEMORY_BYTES}, for_good=True)
worker.confine()
"""


@pytest.mark.parametrize(
    ("attempt", "ends"),
    [
        ("blocks = [bytearray(1 << 26) for _ in range(1 << 10)]", "MemoryError"),
        ("resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))", "ValueError|PermissionError"),
        ("files = [open('/dev/null') for _ in range(100)]", "Too many open files"),
        ("open('written', 'wb', 0).write(b'x' * 10)", "File too large"),
    ],
)
def test_what_the_child_may_not_do_fails_in_it(tmp_path: Path, attempt: str, ends: str) -> None:
    command = [sys.executable, "-IB", "-c", LOAD + as_nobody(attempt)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and re.search(ends, done.stderr), done.stderr


def as_nobody(attempt: str) -> str:
    """Root may raise its hard limits again: the attempt gives that right up first, as a user never had it."""
    gone = "import os\nif os.getuid() == 0:\n    os.chmod('.', 0o777)\n    os.setgid(65534)\n    os.setuid(65534)\n"
    return gone + attempt


def test_a_child_of_a_user_starts_no_process(tmp_path: Path) -> None:
    attempt = as_nobody("subprocess.run(['/bin/true'])")
    command = [sys.executable, "-IB", "-c", LOAD + attempt]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "BlockingIOError" in done.stderr, done.stderr


def test_an_answer_that_eats_memory_costs_its_own_verdict_only() -> None:
    with MathVerifier(deadline_s=10) as verify:
        assert verify(r"\boxed{10^{10^{10}}}", "72") in ("timeout", "error", "wrong", "unparsable")
        assert verify(r"\boxed{72}", "72") == "correct"
