"""A wait that does not end, ends the run: with its name, its progress, every thread's stack, and no child left over."""

import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import ROOT

from apr_train.deadlines import EXPIRED, Deadlines
from apr_train.lost_rank import RankLost

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


def test_the_time_of_a_wait_inside_counts_for_that_alone() -> None:
    """A step's rollouts may take longer than its update may."""
    told, happened = list[str](), threading.Event()

    def expire(message: str) -> None:
        told.append(message)
        happened.set()

    deadlines = Deadlines({"update": 0.4, "rollout": 60}, expire)
    with deadlines("update", lambda: "step 5"):
        with deadlines("rollout"):
            time.sleep(1.0)
        with deadlines("engine_start"):  # forever
            time.sleep(1.0)
        assert not told
        assert happened.wait(30)
    assert told == ["update did not end in 0.4 s (waited 0 s); it got to: step 5"]


def test_a_wait_inside_says_how_far_the_ones_around_it_came() -> None:
    told, happened = list[str](), threading.Event()

    def expire(message: str) -> None:
        told.append(message)
        happened.set()

    deadlines = Deadlines({"update": 60, "rollout": 0.05}, expire)
    with deadlines("update", lambda: "step 5"), deadlines("rollout", lambda: "12 of 64 trajectories"):
        assert happened.wait(30)
    assert told[0].endswith("; it got to: 12 of 64 trajectories, step 5")


@pytest.mark.parametrize("seconds", [{}, {"update": 60}])
def test_a_rank_that_went_away_is_named_with_the_wait_and_the_step(seconds: dict[str, float]) -> None:
    deadlines = Deadlines(seconds)
    gone = RuntimeError(
        "[/src/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4242. See the logs."
    )
    expected = (
        r"^lost contact to another rank in update after 0 s \(Connection closed by peer \[10\.0\.0\.2\]:4242\); "
        r"it got to: step 5; .* start the same command again"
    )
    with pytest.raises(RankLost, match=expected) as raised, deadlines("update", lambda: "step 5"):
        raise gone
    assert raised.value.__cause__ is gone and not deadlines.waits
