"""Wrong answers of a vLLM server, given by a small one that answers what it is told to."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bad_inputs import Case

from rollout.engines.boot import HEADER

SERVER = "Answers of a server (rollout=vllm_http)"
MODELS = (200, json.dumps({"data": [{"id": "policy", "max_model_len": 64}]}))
"""Status and body, as a sound server answers."""


@contextmanager
def server(*answers: tuple[int, str], kind: str = "application/json") -> Iterator[str]:
    """Gives these answers in turn, the last one again and again; its address."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, text = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header(HEADER, "one start")
            if status // 100 == 3:
                self.send_header("location", "http://127.0.0.1:1/v1/models")
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()


def answers(*given: tuple[int, str], kind: str = "application/json", model: str | None = None) -> Callable[[], object]:
    """Makes the engine over a server that gives these answers."""

    def act() -> None:
        from rollout.engines.vllm_http import VllmHttpEngine

        with server(*given, kind=kind) as url:
            VllmHttpEngine(url, model, max_context=64)

    return act


def sampled(logprob: float, finish: str = "length") -> tuple[int, str]:
    """The answer to one token asked for."""
    choice = {"token_ids": [0], "logprobs": {"token_logprobs": [logprob]}, "finish_reason": finish}
    return 200, json.dumps({"choices": [choice]})


def nobody() -> None:
    """A port that nobody listens on any more."""
    from rollout.engines.vllm_http import VllmHttpEngine

    with server(MODELS) as url:
        pass
    VllmHttpEngine(url, max_context=64)


def unusable(page: str, why: str) -> str:
    """The line for an answer that no vLLM server gives."""
    url = f"http://127.0.0.1:8000/v1/{page}"
    return f"{url} gave an answer that cannot be used ({why}): is it a vLLM server? See its log"


HTML = "<html>\n<h1>Not Found</h1>\n</html>"
SHORT = (200, MODELS[1].replace("64", "32"))
DEAD = (500, json.dumps({"error": {"message": "EngineDeadError\nTraceback ..."}}))

CASES = [
    Case(
        "no server",
        SERVER,
        "no server at the address",
        "no vLLM server at http://127.0.0.1:8000/v1/models: start one, or correct rollout.urls",
        nobody,
    ),
    Case(
        "token",
        SERVER,
        "401: no token, or another one",
        (
            "http://127.0.0.1:8000/v1/models wants a bearer token, or another one: set VLLM_API_KEY "
            "to the server's, here too"
        ),
        answers((401, "{}")),
    ),
    Case(
        "no such page",
        SERVER,
        "404 and a page of HTML",
        "http://127.0.0.1:8000/v1/models answered 404: <html>",
        answers((404, HTML), kind="text/html"),
    ),
    Case(
        "dead engine",
        SERVER,
        "500 and a traceback",
        "http://127.0.0.1:8000/v1/completions answered 500: EngineDeadError",
        answers(MODELS, DEAD),
    ),
    Case(
        "overloaded",
        SERVER,
        "503 without a word",
        "http://127.0.0.1:8000/v1/models answered 503: no reason given",
        answers((503, ""), kind="text/plain"),
    ),
    Case(
        "redirect",
        SERVER,
        "a redirect, which is not followed",
        "http://127.0.0.1:8000/v1/models answered 307: no reason given",
        answers((307, ""), kind="text/plain"),
    ),
    Case(
        "other model",
        SERVER,
        "another model",
        "http://127.0.0.1:8000/v1 serves policy, not other: fix rollout.urls or model.path",
        answers(MODELS, model="other"),
    ),
    Case(
        "shorter",
        SERVER,
        "a model of a shorter context",
        "http://127.0.0.1:8000/v1 holds 32 tokens, model.max_context is 64: lower it",
        answers(SHORT),
    ),
    Case(
        "raw log-probs",
        SERVER,
        "log-probs before temperature and bans",
        ("http://127.0.0.1:8000/v1 reports raw log-probs: start it with --logprobs-mode processed_logprobs"),
        answers(MODELS, sampled(-1.5)),
    ),
    Case(
        "aborted",
        SERVER,
        "a call that the server gave up",
        "http://127.0.0.1:8000/v1/completions ended a call with 'abort': see the server's log",
        answers(MODELS, sampled(0.0, "abort")),
    ),
    Case(
        "no json",
        SERVER,
        "a page of HTML as if all were well",
        unusable("models", "18 bytes that are no JSON"),
        answers((200, "<html>busy</html>\n")),
    ),
    Case(
        "no list",
        SERVER,
        "an object without models",
        unusable("models", "data is missing"),
        answers((200, "{}")),
    ),
    Case(
        "nothing served",
        SERVER,
        "no model",
        unusable("models", "no model with an id and a max_model_len"),
        answers((200, '{"data": []}')),
    ),
    Case(
        "no choices",
        SERVER,
        "no completion",
        unusable("completions", "choices is empty"),
        answers(MODELS, (200, '{"choices": []}')),
    ),
    Case(
        "no ids",
        SERVER,
        "text where ids are due",
        unusable("completions", "token_ids is missing"),
        answers(MODELS, (200, sampled(0.0)[1].replace("token_ids", "text"))),
    ),
    Case(
        "no number",
        SERVER,
        "a log-prob that is none",
        unusable("completions", "token_logprobs holds what is no log-probability"),
        answers(MODELS, sampled(math.nan)),
    ),
    Case(
        "two for one",
        SERVER,
        "more tokens than were asked for",
        unusable("completions", "2 ids and 2 log-probs where 1 to 1 were due"),
        answers(MODELS, (200, sampled(0.0)[1].replace("[0]", "[0, 0]").replace("[0.0]", "[0.0, 0.0]"))),
    ),
]
