"""A server of the sampler that is killed, hangs or answers garbage, five times each, in whole runs over HTTP.

Slow: `make test-chaos`. What a server has answered is kept and only the rest asked again, in other batches than before:
log-probs differ in their last digits, so tokens must be the same and metrics the same but for rounding.
"""

import json
import random
import signal
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil
import pytest
from chaos import FINE, MOST_SECONDS, ROUNDS, SEED, rl_step, took
from conftest import ROOT
from real_runs import Running, command, results, running, start
from test_vllm_http import free_port

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("seconds_table")]
GARBAGE = {
    "no JSON": b"<html>504</html>",
    "nothing": b"",
    "another object": b'{"choices": [{"text": "7"}]}',
    "impossible numbers": (
        b'{"choices": [{"token_ids": [1], "logprobs": {"token_logprobs": [NaN]}, "finish_reason": "length"}]}'
    ),
    "no ids": b'{"choices": [{"token_ids": ["a"], "logprobs": {"token_logprobs": [-1]}, "finish_reason": "stop"}]}',
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, warm_policy: Path) -> Iterator[tuple[Running, str]]:
    """A vLLM server under scripts/serve_sampler.py, and its address."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    watch = ("--port", str(port), "--restarts", "99", "--pause", "0.5", "--hang-seconds", "5")
    settings = [*FINE, f"model.path={warm_policy}", f"output_dir={folder}", "rollout.kv_cache_gib=0.2"]
    with running([sys.executable, str(ROOT / "scripts/serve_sampler.py"), *watch, *settings], folder / "log") as run:
        run.until(lambda: answers(port), 180)
        yield run, f"http://127.0.0.1:{port}"


def answers(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
    except OSError:
        return False


def over(url: str, policy: Path) -> tuple[str, ...]:
    own = ("rollout=vllm_http", f"rollout.urls=[{url}/v1]", "rollout.engine_restarts=20", "rollout.call_seconds=5")
    return (*[each for each in FINE if not each.startswith("rollout=")], *own, f"model.path={policy}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, server: tuple[Running, str], warm_policy: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    start(folder, *over(server[1], warm_policy))
    return results(folder, 1)


def alike(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The same tokens; the same numbers but for rounding."""
    ours, theirs = ([json.loads(line) for line in each["rollouts"][0].splitlines()] for each in (found, wanted))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        ids = [[segment["ids"] for segment in each["trajectory"]["segments"]] for each in (one, other)]
        assert ids[0] == ids[1]
    assert len(found["curve"]) == len(wanted["curve"])
    for one, other in zip(found["curve"], wanted["curve"], strict=True):
        assert max(row["gap/logprob_max_abs"] for row in (one, other)) < 1e-4  # rounding itself, of the worst token
        left_out = ("stage", "gap/logprob_max_abs")
        numbers = [{name: value for name, value in row.items() if name not in left_out} for row in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-5, nan_ok=True)


def parts_of(server: Running) -> list[psutil.Process]:
    """vLLM's processes: the one that answers and the one that decodes."""
    return [each for each in server.tree()[1:] if "resource_tracker" not in " ".join(each.cmdline())]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_an_engine(
    tmp_path: Path, server: tuple[Running, str], warm_policy: Path, whole: dict[str, Any], how: signal.Signals
) -> None:
    chosen, broken = random.Random(SEED), tmp_path / "run"
    with running(command(broken, *over(server[1], warm_policy)), tmp_path / "log") as run:
        for _ in range(ROUNDS):
            before = rl_step(broken)
            run.until(lambda before=before: rl_step(broken) > before, 120)
            chosen.choice(parts_of(server[0])).send_signal(how)
            kind = "engine killed" if how == signal.SIGKILL else "engine hangs"
            took(kind, run.until(lambda before=before: rl_step(broken) > before + 1, MOST_SECONDS))
        run.ended(180)
        assert run.process.returncode == 0, run.output[-2000:]
    alike(results(broken, 1), whole)


class Between(ThreadingHTTPServer):
    """Hands requests on to a server and its answers back, or answers `garbage` where a completion is asked for."""

    garbage: bytes | None = None

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=30)
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Between

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        got = self.server.client.request(
            self.command, self.path, content=body, headers={"content-type": "application/json"}
        )
        text = got.content
        if self.server.garbage is not None and self.path.endswith("/completions"):
            text = self.server.garbage
        self.send_response(got.status_code)
        for name, value in got.headers.items():
            if name.startswith(("x-", "content-type")):
                self.send_header(name, value)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def between(url: str) -> Iterator[Between]:
    proxy = Between(url)
    Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()


def test_a_server_that_answers_garbage(
    tmp_path: Path, server: tuple[Running, str], warm_policy: Path, whole: dict[str, Any]
) -> None:
    broken = tmp_path / "run"
    with between(server[1]) as proxy:
        arguments = over(f"http://127.0.0.1:{proxy.server_address[1]}", warm_policy)
        for garbage in GARBAGE.values():
            proxy.garbage = None
            with running(command(broken, *arguments), tmp_path / "log") as run:
                before, told = rl_step(broken), run.output
                run.until(lambda before=before: rl_step(broken) > before, 120)
                proxy.garbage = garbage
                took("garbage over HTTP", run.ended(MOST_SECONDS))
                lines = [line for line in run.output[len(told) :].splitlines() if line.startswith("error: ")]
                assert run.process.returncode == 2 and len(lines) == 1, run.output[-2000:]
                assert "gave an answer that cannot be used" in lines[0] and "Traceback" not in run.output
        proxy.garbage = None
        start(broken, *arguments)
    alike(results(broken, 1), whole)
