"""A server that looks like vLLM over HTTP, samples by prompt, seed and weights, and can be killed, hung and broken."""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dying_engines import PARALLEL, tokens_of

from rollout.engines.boot import END, HEADER

SIZE = len(PARALLEL.tokenizer)


class Served:
    """On one port for all its lives. `at[n]` is done to the answer of the n-th call of a life, of all that ever were.

    died: the server is gone, and back when it is asked for its health. hang: no answer. stuck: no answer to any call
    until the server is told to end and starts again. Anything else: the body.
    """

    def __init__(
        self,
        at: dict[int, str | bytes | Callable[[Any], Any]] | None = None,
        hang: float = 5.0,
        named: bool = True,
        size: int = SIZE,
    ) -> None:
        self.at, self.hang, self.named, self.size = at or {}, hang, named, size
        self.calls = self.lives = 0
        self.dead, self.stuck, self.weights = False, False, "start"
        self.loaded: list[str] = []
        self.lock = threading.Lock()
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                served.answer(self, json.loads(body) if body else {})

            do_GET = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        ThreadingHTTPServer.request_queue_size = 128
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def restart(self) -> None:
        """Another start of the server, with the weights of its folder."""
        self.lives, self.dead, self.weights = self.lives + 1, False, "start"
        self.stuck = False

    def answer(self, handler: Any, asked: dict[str, Any]) -> None:
        path = handler.path
        if self.dead and path == "/health":
            self.restart()
        if self.dead:
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return None
        if path == "/health":
            return self.send(handler, b"")
        if path == END:
            self.dead = True
            return self.answer(handler, asked)
        if path == "/v1/models":
            return self.send(handler, {"data": [{"id": "m", "max_model_len": 1000}]})
        if path == "/collective_rpc":
            self.weights = hashlib.sha256(Path(asked["args"][0]).read_bytes()).hexdigest()
            self.loaded.append(self.weights)
            return self.send(handler, {"results": [[]]})
        if path == "/reset_prefix_cache":
            return self.send(handler, {"success": True})
        return self.complete(handler, asked)

    def complete(self, handler: Any, asked: dict[str, Any]) -> None:
        if self.stuck:
            time.sleep(self.hang)
        if asked.get("allowed_token_ids"):
            return self.send(handler, completion((0,), (0.0,), "length"))
        with self.lock:
            self.calls += 1
            what = self.at.get(self.calls)
        done = tokens_of(asked["prompt"], asked | {"stop_ids": asked["stop_token_ids"]}, self.weights, self.size)
        answer = completion(done.ids, done.logprobs, done.finish)
        if what == "died":
            self.dead = True
            return self.answer(handler, asked)
        if what == "restarted":
            self.restart()
            done = tokens_of(asked["prompt"], asked | {"stop_ids": asked["stop_token_ids"]}, self.weights, self.size)
            return self.send(handler, completion(done.ids, done.logprobs, done.finish))
        if what == "stuck":
            self.stuck = True
        if what in ("hang", "stuck"):
            time.sleep(self.hang)
        return self.send(handler, what(answer) if callable(what) else answer)

    def send(self, handler: Any, answer: Any) -> None:
        """JSON of `answer`; bytes as they are; (status, headers, bytes) wholly."""
        status, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        named = {HEADER: f"life {self.lives}"} if self.named else {}
        for name, value in ({"content-length": str(len(body))} | named | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def completion(ids: tuple[int, ...], logprobs: tuple[float, ...], finish: str) -> dict[str, Any]:
    return {
        "choices": [{"token_ids": list(ids), "logprobs": {"token_logprobs": list(logprobs)}, "finish_reason": finish}]
    }
