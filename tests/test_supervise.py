"""A sampler server that dies is started again, one that hangs is killed first, and none is left when told to end."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from test_vllm_http import free_port

from apr_train.supervise import Supervisor, health_of

SERVER = """
import http.server, os, signal, subprocess, sys, threading, time
port, log, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
open(log, "a").write(f"{os.getpid()}\\n")
count = len(open(log).readlines())
if how == "never":
    sys.exit(3)
if how == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(log + ".workers", "a").write(f"{worker.pid}\\n")
asked = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(self.path)
        if how == "hangs" and count == 1 and len(asked) > 1:
            time.sleep(600)
        self.send_response(200)
        self.end_headers()
        if how == "dies" or (how == "dies once" and count == 1):
            threading.Timer(0.1, os._exit, [7]).start()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def supervisor(folder: Path, how: str, said: list[str], restarts: int = 2) -> Supervisor:
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port), str(folder / "log"), how]
    health = health_of("127.0.0.1", port)
    return Supervisor(command, health, restarts=restarts, pause=0.1, hang_seconds=2.0, say=said.append)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def none_left(*processes: int) -> bool:
    """Whether all are gone: what is killed goes a moment later."""
    end = time.monotonic() + 20
    while any(map(alive, processes)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, processes))


def pids(folder: Path, suffix: str = "") -> list[int]:
    file = folder / f"log{suffix}"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def told_when(folder: Path, starts: int, number: int = signal.SIGTERM) -> None:
    """Signals this process once the server was started so often and its last start has a worker."""

    def tell() -> None:
        end = time.monotonic() + 60
        while len(pids(folder, ".workers")) < starts and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(1.5)
        os.kill(os.getpid(), number)

    threading.Thread(target=tell, daemon=True).start()


def test_a_server_that_dies_again_and_again_is_given_up_and_leaves_no_worker(tmp_path: Path) -> None:
    said: list[str] = []
    assert supervisor(tmp_path, "dies", said).run() == 7
    assert said == [f"the server ended with 7; {left} restarts left" for left in (2, 1, 0)]
    assert len(pids(tmp_path)) == 3 and none_left(*pids(tmp_path, ".workers"))


@pytest.mark.parametrize(("how", "says"), [("dies once", "ended with 7"), ("hangs", "gave no answer for 2 s")])
def test_a_server_that_died_or_hangs_serves_again(tmp_path: Path, how: str, says: str) -> None:
    said: list[str] = []
    told_when(tmp_path, starts=2)
    assert supervisor(tmp_path, how, said).run() == 0
    assert says in said[0] and len(pids(tmp_path)) == 2
    assert none_left(*pids(tmp_path), *pids(tmp_path, ".workers"))


def test_a_server_that_never_served_is_not_tried_again(tmp_path: Path) -> None:
    assert supervisor(tmp_path, "never", []).run() == 3
    assert len(pids(tmp_path)) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_the_supervisor_ends_the_server_also_one_that_will_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("apr_train.supervise.GRACE", 1.0)
    before = signal.getsignal(number)
    told_when(tmp_path, starts=1, number=number)
    assert supervisor(tmp_path, "stubborn", []).run() == 0
    assert len(pids(tmp_path)) == 1 and none_left(*pids(tmp_path), *pids(tmp_path, ".workers"))
    assert signal.getsignal(number) is before
