"""The doctor: every condition has its line and its advice, and no check can hang it or take it down."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from apr_train import doctor
from apr_train.compose import load
from apr_train.doctor import CHECKS, GIB, Check, Finding, examine
from scripts import doctor as script

Usage = namedtuple("Usage", "total used free")
Patch = pytest.MonkeyPatch


def table(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    assert lines and max(map(len, lines)) <= 80
    return lines


# Conditions


def test_another_python_fails() -> None:
    assert doctor.python([], (3, 11)).result == "ok"
    found = doctor.python([], (3, 13))
    assert (found.result, found.found) == ("fail", "3.13") and "Python 3.11" in found.advice


@pytest.mark.parametrize(
    ("package", "now", "result", "says"),
    [
        ("trl", None, "fail", "1 missing: trl"),
        ("trl", "0.9.0", "fail", "trl 0.9.0 (pinned 1.16.0)"),
        ("torch", "2.13.0+cu130", "ok", "as pinned"),
        ("urllib3", None, "warn", "1 missing, 0 differ: urllib3"),
        ("urllib3", "0.1", "warn", "0 missing, 1 differ: urllib3 0.1"),
    ],
)
def test_versions_that_are_not_the_pinned_ones(
    monkeypatch: Patch, package: str, now: str | None, result: str, says: str
) -> None:
    pins = doctor._pins("cpu")  # pyright: ignore[reportPrivateUsage]
    assert len(pins) > 100
    monkeypatch.setattr(doctor, "_installed", lambda name: now if name == package else pins.get(name))
    found = doctor.packages([])
    assert found.result == result and says in found.found
    assert ("make setup" in found.advice) == (result != "ok")


def test_versions_are_read_from_this_environment() -> None:
    assert doctor._installed("torch") == version("torch")  # pyright: ignore[reportPrivateUsage]
    assert doctor._installed("no-such-package") is None  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("gpus", "driver", "cores", "result", "says"),
    [
        (2, "570.1", 8, "ok", "2 x Card, 80 GiB each, driver 570.1"),
        (0, "570.1", 8, "warn", "a GPU (driver 570.1) that torch does not see; 8 CPU cores"),
        (0, None, 8, "ok", "no GPU, 8 CPU cores"),
        (0, None, 1, "warn", "no GPU, 1 CPU core"),
    ],
)
def test_devices(monkeypatch: Patch, gpus: int, driver: str | None, cores: int, result: str, says: str) -> None:
    card = SimpleNamespace(name="Card", total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(doctor, "_driver", lambda: driver)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    found = doctor.devices([])
    assert (found.result, found.found) == (result, says) and bool(found.advice) == (result != "ok")


@pytest.mark.parametrize("text", ["570.1\n570.1\n", None])
def test_the_driver_is_what_nvidia_smi_says(tmp_path: Path, monkeypatch: Patch, text: str | None) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\n" + (f"printf '{text}'" if text else "exit 9"))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert doctor._driver() == ("570.1" if text else None)  # pyright: ignore[reportPrivateUsage]


def test_two_processes_add_up() -> None:
    assert doctor.ranks([]) == Finding("ok", "two processes added up over gloo")


def test_processes_that_cannot_meet_are_a_line(monkeypatch: Patch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none7")
    found = doctor.ranks([])
    assert found.result == "fail" and found.found.startswith("gloo: ") and "GLOO_SOCKET_IFNAME" in found.advice


@pytest.mark.parametrize(("overrides", "result"), [([], "fail"), (["rollout=torch"], "warn")])
def test_a_vllm_that_cannot_be_imported(monkeypatch: Patch, overrides: list[str], result: str) -> None:
    def broken(name: str, package: str | None = None) -> Any:
        if name == "rollout.engines.vllm_inprocess":
            raise OSError("libcudart.so.13: cannot open shared object file")
        return import_module(name, package)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    found = doctor.vllm(overrides)
    assert found.result == result and "libcudart" in found.found and "rollout=torch" in found.advice


@pytest.mark.parametrize(("free", "result"), [(64 << 20, "fail"), (512 << 20, "warn"), (8 * GIB, "ok")])
def test_little_shared_memory(monkeypatch: Patch, free: int, result: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
    found = doctor.shared_memory([])
    assert found.result == result and ("--shm-size" in found.advice) == (result != "ok")
    assert doctor.shared_memory([], "/nowhere").result == "warn"


def test_an_output_folder_that_can_be_used_is_left_as_it_was(tmp_path: Path) -> None:
    found = doctor.output([f"output_dir={tmp_path}/new/run"])
    assert found.result == "ok" and str(tmp_path) in found.found and not list(tmp_path.iterdir())


def test_a_full_disk(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(GIB, GIB, 1000))
    found = doctor.output([f"output_dir={tmp_path}"])
    assert found.result == "fail" and "0.0 GiB free, about 1.0 needed" in found.found
    assert "checkpoint.keep_last" in found.advice


@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename"])
def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: Patch, call: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    overrides = [f"output_dir={tmp_path}"]
    load(overrides)  # imports what a refused mkdir would break
    monkeypatch.setattr(*((os, "fsync", refuse) if call == "fsync" else (Path, call, refuse)))
    found = doctor.output(overrides)
    assert found.result == "fail" and "Read-only file system" in found.found and "output_dir=" in found.advice


def test_the_tokenizer_and_its_tags() -> None:
    found = doctor.tokenizer(["dialect=npr"])
    assert found.result == "ok" and "tags of npr" in found.found
    bad = examine("tokenizer", ["model.tokenizer=no/such/folder"])
    assert bad.result == "fail" and "no/such/folder" in bad.found and bad.advice


@pytest.mark.parametrize("missing", [("g++",), ("ninja",), ("g++", "ninja")])
def test_missing_compilers(monkeypatch: Patch, missing: tuple[str, ...]) -> None:
    def which(tool: str, path: str | None = None) -> str | None:
        return None if tool in missing else tool

    monkeypatch.setattr(shutil, "which", which)
    assert doctor.compilers([]).result == "ok"
    found = doctor.compilers(["deepspeed=zero2"])
    assert found.result == "fail" and " and ".join(missing) in found.found and "apt-get install" in found.advice


def test_a_wrong_override_is_the_line_that_training_would_say() -> None:
    found = examine("configuration", ["rollout.max_treads=3"])
    assert found.result == "fail" and "did you mean rollout.max_threads?" in found.found and found.advice


@pytest.mark.parametrize("error", [ImportError("no torch"), RuntimeError("odd")])
def test_a_check_that_raises_is_a_fail(monkeypatch: Patch, error: Exception) -> None:
    def act(_: Sequence[str]) -> Finding:
        raise error

    monkeypatch.setitem(CHECKS, "python", Check(act, 1))
    found = examine("python", [])
    assert found.result == "fail" and str(error) in found.found and found.advice


@pytest.mark.parametrize(
    "overrides",
    [
        *(["experiment=quickstart"], ["experiment=apr_countdown"], ["dialect=multiverse", "deepspeed=zero2"]),
        *(["rollout=vllm_http"], ["algorithm.steps=0", "sft=warm_start"], ["self_train=npr", "dialect=npr"]),
        ["cluster=slurm", "cluster.nodes=2", "dry_run=true"],
    ],
)
def test_the_tiny_run_is_a_valid_configuration(tmp_path: Path, overrides: list[str]) -> None:
    config = load(overrides)
    small = load([*overrides, *doctor.tiny(config, tmp_path)])
    assert small.algorithm.steps <= 1 and small.sft.steps <= 1 and small.output_dir == str(tmp_path)
    assert (small.dialect, small.data.task, small.deepspeed) == (config.dialect, config.data.task, config.deepspeed)


@pytest.mark.parametrize(
    ("stderr", "says"), [("banner\nerror: no room\nmore\n", "no room"), ("Trace\nKeyError: 1\n", "KeyError: 1")]
)
def test_a_failed_step_says_what_training_said(monkeypatch: Patch, stderr: str, says: str) -> None:
    def fail(command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 2, "", stderr)

    monkeypatch.setattr(subprocess, "run", fail)
    found = doctor.one_step([])
    assert (found.result, found.found) == ("fail", says) and found.advice


# The table


def run_child(code: str) -> Any:
    return lambda name, to, overrides: [sys.executable, "-c", f"TO = {str(to)!r}\n{code}"]


def nothing(_: Sequence[str]) -> Finding:
    raise AssertionError("runs in the child only")


SAYS_OK = 'open(TO, "w").write(\'{"result": "ok", "found": "fine", "advice": ""}\')'


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import time; time.sleep(60)", "no answer within 1 s"),
        ("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)", "no answer within 1 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code -11"),
        ("raise SystemExit('libfoo is missing')", "exit code 1: libfoo is missing"),
        ("pass", "exit code 0"),
        ("open(TO, 'w').write('not json')", "exit code 0"),
    ],
)
def test_a_check_that_hangs_or_dies_costs_its_own_line(
    code: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(name: str, to: Path, overrides: Sequence[str]) -> list[str]:
        return run_child(code if name == "bad" else SAYS_OK)(name, to, overrides)

    start = time.monotonic()
    found = script.judge_all({"bad": Check(nothing, 1), "good": Check(nothing, 20)}, [], command=command)
    assert time.monotonic() - start < 20
    assert found["bad"].result == "fail" and says in found["bad"].found and found["bad"].advice
    assert found["good"] == Finding("ok", "fine")
    assert any(line.split()[:2] == ["bad", "fail"] for line in table(capsys))


def test_what_a_check_started_ends_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import subprocess, time; p = subprocess.Popen(['sleep', '300']); open({str(pid)!r}, 'w').write(str(p.pid))"
    script.judge("x", Check(nothing, 3), [], run_child(f"{code}; time.sleep(60)"))
    status = Path(f"/proc/{pid.read_text()}/stat")
    for _ in range(50):
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("it goes on")


def test_a_finding_is_shown_at_most_80_columns_wide_and_obeyed_by_nothing() -> None:
    text = script.row("python", Finding("fail", "\x1b[2J" + "word " * 100 + "x" * 200, "[red]do this" * 30))
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text and len(text.splitlines()) <= 8


def test_without_a_configuration_its_checks_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    checks = {"configuration": Check(nothing, 20), "tokenizer": Check(nothing, 20, configured=True)}
    failing = run_child('open(TO, "w").write(\'{"result": "fail", "found": "x", "advice": "y"}\')')
    found = script.judge_all(checks, [], command=failing)
    assert found["tokenizer"].result == "warn" and "not checked" in found["tokenizer"].found


@pytest.mark.parametrize(("results", "code"), [(("ok", "warn"), 0), (("ok", "fail"), 1)])
def test_exit_code_and_json(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str], results: tuple[Any, ...], code: int
) -> None:
    findings = {str(i): Finding(result, "x") for i, result in enumerate(results)}
    monkeypatch.setattr(script, "judge_all", lambda *_, **__: findings)
    assert script.main(["--json", "seed=1"]) == code
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [each["result"] for each in told.values()] == list(results)


def test_light_checks_run_as_children_of_the_real_script(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "CHECKS", {name: CHECKS[name] for name in ("python", "configuration", "compilers")})
    assert script.main(["--quick", "deepspeed=zero2", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {name: each["result"] for name, each in json.loads(lines[-1]).items()} == {
        "python": "ok",
        "configuration": "ok",
        "compilers": "ok",
    }


def test_quick_trains_nothing() -> None:
    assert [name for name, check in CHECKS.items() if check.slow] == ["one step"]
    assert all(check.deadline_s > 0 for check in CHECKS.values())


@pytest.mark.slow
def test_one_step_of_everything_here() -> None:
    found = doctor.one_step(["experiment=quickstart"])
    assert found.result == "ok" and "nats" in found.found
