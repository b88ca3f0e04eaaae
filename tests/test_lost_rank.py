"""A rank that went away ends the others with one line, soon, and with nothing half written: real processes, gloo."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import ROOT
from torch import distributed

from apr_train import run
from apr_train.checkpoint import CheckpointError, Checkpoints
from apr_train.config import Config
from apr_train.lost_rank import lost_contact

GLOO = "[/src/third_party/gloo/gloo/transport/tcp/"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(GLOO + "pair.cc:547] Connection closed by peer [10.0.0.2]:4242"),
        RuntimeError(GLOO + "pair.cc:537] Read error [10.0.0.2]:4242: Connection reset by peer"),
        RuntimeError(GLOO + "unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete"),
        RuntimeError("Gloo connectFullMesh failed with " + GLOO + "pair.cc:144] no error"),
        distributed.DistBackendError("NCCL error: remote process exited or there was a network error"),
        distributed.DistBackendError("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3) ran too long"),
        distributed.DistStoreError("wait timeout after 300000ms, keys: /default_pg/0//cuda//1"),
        distributed.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."),
    ],
)
def test_a_rank_that_went_away_is_no_traceback(error: RuntimeError) -> None:
    assert lost_contact(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at " + GLOO[1:] + "pair.cc:446] op.preamble.length <= op.nbytes. 64 vs 32"),
        RuntimeError("shape '[4, 8]' is invalid for input of size 31"),
        RuntimeError("the verifier's child timed out"),
        distributed.DistBackendError("NCCL error: invalid usage, ncclInvalidUsage: Duplicate GPU detected"),
        distributed.DistNetworkError("The server socket has failed to listen on any local network address: EADDRINUSE"),
        CheckpointError("step_2 was not written (Connection timed out): gloo"),
        ConnectionResetError("Connection reset by peer"),
    ],
)
def test_a_bug_or_a_wrong_setting_does_not_pass_for_a_lost_rank(error: Exception) -> None:
    assert not lost_contact(error)


def two_ranks(folder: Path, stage: str, inside: Sequence[list[str]], address: str, device: str) -> list[int]:
    """Exit codes of tests/lost_in_backward.py; each rank's stderr in rank<r>.log. As torchrun starts ranks, but nobody
    ends the other one when the first is gone. `inside` goes before each rank's command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": device}
    running: list[subprocess.Popen[bytes]] = []
    for rank, prefix in enumerate(inside):
        environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        command = [*prefix, sys.executable, str(ROOT / "tests/lost_in_backward.py"), str(folder), stage]
        with (folder / f"rank{rank}.log").open("w") as log:
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        return [each.wait(150) for each in running]
    finally:
        for each in running:
            each.kill()


def killed_in_backward(
    folder: Path,
    stage: str,
    inside: Sequence[list[str]] = ([], []),
    address: str = "127.0.0.1",
    device: str = "lo",
) -> None:
    """Runs it, and asserts how the rank that is left ends and what it leaves."""
    codes = two_ranks(folder, stage, inside, address, device)
    log = (folder / "rank0.log").read_text()
    assert codes == [2, -9], log[-3000:]
    (line,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: rank 0: lost contact to another rank in update after ")
    assert "it got to: step 2 of rl (step_1 is saved)" in line and "Traceback" not in log
    assert "gloo/transport" in (folder / "error-rank0.log").read_text()
    newest = Checkpoints(folder / "rl").newest()
    assert newest is not None and newest.name == "step_1"


@pytest.mark.parametrize("stage", ["none", *(pytest.param(stage, marks=pytest.mark.slow) for stage in "023")])
def test_a_rank_killed_in_its_backward_pass_ends_the_other_one_with_one_line(tmp_path: Path, stage: str) -> None:
    killed_in_backward(tmp_path, stage)


ABORTS = """
import atexit, ctypes, os
from apr_train import compose

libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)  # as a thread of torch does that is still there
atexit.register(print, "said goodbye")
compose.start(lambda: print("trained"))
"""


@pytest.mark.parametrize(("ranks", "code"), [("2", 0), ("1", -6)])
def test_a_finished_rank_is_not_failed_by_what_torch_has_left(ranks: str, code: int) -> None:
    """A rank that is alone has nothing left of torch.distributed: it ends as any process does."""
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": ranks}
    done = subprocess.run(
        [sys.executable, "-c", ABORTS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == code
    assert code or done.stdout == "trained\nsaid goodbye\n"


ENDS = """
import os, sys
from apr_train import compose
from apr_train.config import Config
from apr_train.lost_rank import RankLost

def bug(): raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4242")
with compose.one_line_errors(every_rank=True, folder=sys.argv[1]):
    bug()
"""


def ended(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RANK": "3", "WORLD_SIZE": "4"}
    command = [sys.executable, "-c", ENDS, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_contact_lost_between_two_waits_is_told_too_and_its_traceback_kept(tmp_path: Path) -> None:
    done = ended(tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: rank 3: lost contact to another rank (Connection closed by peer [10.0.0.2]")
    assert "in bug" in (tmp_path / "error-rank3.log").read_text()


def test_a_traceback_that_no_file_takes_is_printed(tmp_path: Path) -> None:
    done = ended(tmp_path / "missing")
    assert done.returncode == 2 and done.stderr.startswith("error: rank 3: lost contact") and "in bug" in done.stderr


@pytest.mark.parametrize(
    ("collective", "update", "seconds"), [(100.0, 500.0, 560), (500.0, 100.0, 560), (500.0, 0.0, 10**6)]
)
def test_a_wait_with_a_name_ends_before_torch_ends_it(
    monkeypatch: pytest.MonkeyPatch, collective: float, update: float, seconds: int
) -> None:
    asked: list[timedelta] = []
    monkeypatch.setattr(run, "PartialState", lambda cpu, timeout: asked.append(timeout))
    config = Config()
    config.deadline.collective, config.deadline.update = collective, update
    run.start_world(config)
    assert asked == [timedelta(seconds=seconds)]
