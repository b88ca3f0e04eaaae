"""The HTTP engine: the in-process engine's answers from a real server, and one clear line when there is none."""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from tiny_models import EOS, VOCABULARY, reference_logprobs, save, tiny_qwen3

from rollout.engine import EngineError, Sampling
from rollout.engines.boot import HEADER
from rollout.engines.vllm_http import VllmHttpEngine, server_command

MAX_CONTEXT = 128


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def token() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", "token-of-the-test")
        yield "token-of-the-test"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, token: str) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    save(tiny_qwen3(0), folder / "model")
    command = server_command(
        folder / "model", max_context=MAX_CONTEXT, dtype="float32", port=port, cpu_kv_cache_gib=0.25
    )
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
    environment |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_HOST_IP": "127.0.0.1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(240):
            time.sleep(0.5)
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success:
                    break
            except httpx.ConnectError:
                continue
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def engine(server: str, tmp_path_factory: pytest.TempPathFactory) -> VllmHttpEngine:
    return VllmHttpEngine(server, max_context=MAX_CONTEXT, weights_folder=tmp_path_factory.mktemp("weights"))


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "banned"), [(1.0, ()), (0.7, (1, 2, 3, 40))])
def test_served_logprobs_equal_transformers(
    engine: VllmHttpEngine, temperature: float, banned: tuple[int, ...]
) -> None:
    prompts = [[3, 1, 4, token] * 18 for token in range(4)]  # long enough to be cached under the old weights
    for seed in (0, 1):  # the second time after a weight load
        model = tiny_qwen3(seed)
        engine.load_weights(model.named_parameters())
        sampling = Sampling(24, (), temperature, banned_ids=banned)
        for prompt, done in zip(prompts, engine.run(engine.complete(p, sampling) for p in prompts), strict=True):
            assert (len(done.ids), done.finish) == (24, "length")
            assert not set(done.ids) & set(banned)
            expected = reference_logprobs(model, prompt, done.ids, temperature, banned)
            assert max(abs(a - b) for a, b in zip(done.logprobs, expected, strict=True)) < 1e-4


@pytest.mark.slow
def test_served_stops_and_seeds_are_the_callers(engine: VllmHttpEngine) -> None:
    everything = tuple(range(VOCABULARY))
    only_eos = tuple(token for token in everything if token != EOS)
    calls = [
        Sampling(9, everything),
        Sampling(9, (), banned_ids=only_eos),
        Sampling(9, (), seed=3),
        Sampling(9, (), seed=3),
        Sampling(9, (), seed=3 + (1 << 40)),
    ]
    stopped, went_on, *seeded = engine.run(engine.complete([1, 2], sampling) for sampling in calls)
    assert (len(stopped.ids), len(stopped.logprobs), stopped.finish) == (1, 1, "stop")
    assert (went_on.ids, went_on.finish) == ((EOS,) * 9, "length")
    assert seeded[0].ids == seeded[1].ids != seeded[2].ids


@pytest.mark.slow
@pytest.mark.parametrize("route", ["/v1/models", "/collective_rpc", "/reset_prefix_cache", "/server_info", "/docs"])
def test_a_real_server_answers_nothing_without_the_token(server: str, token: str, route: str) -> None:
    url = server.removesuffix("/v1") + route
    body = {"method": "load_weights_file", "args": ["/none"]}
    for headers in ({}, {"Authorization": "Bearer other"}):
        assert httpx.post(url, json=body, headers=headers, timeout=30).status_code == 401
    assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code != 401


@pytest.mark.slow
def test_a_server_that_does_not_fit_is_refused_before_sampling(server: str, engine: VllmHttpEngine) -> None:
    with pytest.raises(EngineError, match="holds 128 tokens"):
        VllmHttpEngine(server, max_context=MAX_CONTEXT + 1)
    with pytest.raises(EngineError, match=r"not other: fix rollout\.url or model\.path"):
        VllmHttpEngine(server, "other", max_context=MAX_CONTEXT)
    with pytest.raises(EngineError, match=r"answered 400: .*temperature"):
        engine.run([engine.complete([1, 2], Sampling(4, (), temperature=-1.0))])
    with pytest.raises(EngineError, match="do not fit"):
        engine.run([engine.complete([1] * 100, Sampling(29, ()))])
    with pytest.raises(EngineError, match="weights_folder"):
        VllmHttpEngine(server, max_context=MAX_CONTEXT).load_weights([])
    weights = dict(tiny_qwen3(0).named_parameters())
    norm = weights.pop("model.norm.weight")
    with pytest.raises(EngineError, match=r"1 parameters were not sent, e\.g\. model\.norm\.weight"):
        engine.load_weights(weights.items())
    engine.load_weights({**weights, "model.norm.weight": norm}.items())


def test_a_dead_server_is_one_clear_line() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(EngineError, match=f"no vLLM server at {url}/models: start one") as caught:
        VllmHttpEngine(url, max_context=64)
    assert "\n" not in str(caught.value)


class FakeServer:
    """Answers like a vLLM server, as far as an engine looks before it samples; `script` holds what comes then."""

    def __init__(self, script: list[tuple[int, str]], logprob: float = 0.0) -> None:
        model = {"data": [{"id": "m", "max_model_len": 64}]}
        probe = {"choices": [{"token_ids": [0], "logprobs": {"token_logprobs": [logprob]}, "finish_reason": "length"}]}
        answers = [(200, json.dumps(model)), (200, json.dumps(probe)), *script]
        self.requests, self.asked = 0, list[tuple[str, str | None]]()

        class Handler(BaseHTTPRequestHandler):
            def answer(handler) -> None:
                handler.rfile.read(int(handler.headers.get("content-length", 0)))
                self.asked.append((handler.path, handler.headers.get("authorization")))
                status, text = answers[min(self.requests, len(answers) - 1)]
                self.requests += 1
                if status == 0:  # never answers
                    time.sleep(2)
                    return
                handler.send_response(status)
                handler.send_header("content-type", "application/json")
                handler.send_header(HEADER, "first")
                if status // 100 == 3:
                    handler.send_header("location", "/elsewhere")
                handler.send_header("content-length", str(len(text)))
                handler.end_headers()
                handler.wfile.write(text.encode())

            do_GET = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.mark.parametrize(
    ("status", "text", "says"),
    [
        (500, '{"error": {"message": "EngineDeadError\\nlong trace"}}', "answered 500: EngineDeadError$"),
        (404, '{"detail": "Not Found"}', "answered 404: .*Not Found"),
        (0, "", r"gave no answer within 0\.3 s"),
    ],
)
def test_a_failing_call_says_what_the_server_said_and_is_not_sent_twice(status: int, text: str, says: str) -> None:
    fake = FakeServer([(status, text)])
    engine = VllmHttpEngine(fake.url, max_context=64)
    engine.timeout_seconds = 0.3
    with pytest.raises(EngineError, match=says):
        engine.run([engine.complete([1], Sampling(4, ()))])
    assert fake.requests == 3  # models, probe, the call
    fake.http.shutdown()


def test_a_server_with_raw_logprobs_would_bias_the_policy_ratio() -> None:
    fake = FakeServer([], logprob=-1.5)
    with pytest.raises(EngineError, match="--logprobs-mode processed_logprobs"):
        VllmHttpEngine(fake.url, max_context=64)
    fake.http.shutdown()
