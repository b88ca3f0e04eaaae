"""A wait that does not end, ends the run: with its name, its progress, every thread's stack, and no child left over."""

import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import ROOT

from apr_train.deadlines import EXPIRED, Deadlines

HANGS = """
import subprocess, sys, time
from apr_train.deadlines import Deadlines

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)

def stuck_in_the_engine():
    time.sleep(600)

with Deadlines({"rollout": 0.5})("rollout", lambda: "12 of 64 trajectories"):
    stuck_in_the_engine()
"""


def test_a_wait_that_hangs_is_named_and_leaves_nothing_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == EXPIRED
    assert done.stderr.startswith("error: rank 0: rollout did not end in 0.5 s (waited ")
    assert "it got to: 12 of 64 trajectories; deadline.* sets" in done.stderr
    assert "stuck_in_the_engine" in done.stderr
    child = int(done.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_wait_that_ends_leaves_no_thread_that_could_still_expire() -> None:
    told: list[str] = []
    deadlines = Deadlines({"sync": 0.2}, told.append)
    with deadlines("sync"):
        pass
    for thread in [each for each in threading.enumerate() if each.name.startswith("deadline")]:
        thread.join(10)
    assert not told


def test_the_inner_of_two_waits_is_the_one_that_is_named() -> None:
    told, happened = list[str](), threading.Event()

    def expire(message: str) -> None:
        told.append(message)
        happened.set()

    deadlines = Deadlines({"rollout": 60, "verify": 0.05}, expire)
    with deadlines("rollout"), deadlines("verify"):
        assert happened.wait(30)
    assert len(told) == 1 and told[0].startswith("verify did not end in 0.05 s")


@pytest.mark.parametrize("seconds", [{}, {"verify": 0}])
def test_a_wait_without_a_deadline_starts_no_thread(seconds: dict[str, float]) -> None:
    before = threading.active_count()
    with Deadlines(seconds)("verify"):
        assert threading.active_count() == before


def test_an_error_inside_is_not_an_expiry() -> None:
    told: list[str] = []
    with pytest.raises(ValueError, match="a bug"), Deadlines({"sync": 60}, told.append)("sync"):
        raise ValueError("a bug")
    assert not told
