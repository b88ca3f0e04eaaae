"""A sampler server that dies, hangs, is restarted or talks nonsense: the same tokens, or one line that says what."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from dying_engines import BUDGET, DIALECT, PARALLEL
from helpers import Judge
from hypothesis import given, settings
from hypothesis import strategies as st
from served import SIZE, Served, completion
from test_vllm_http import free_port
from tiny_models import save, tiny_qwen3
from torch import Tensor

from apr_train import revival
from apr_train.deadlines import Deadlines
from apr_train.revival import EngineLost, Revival
from apr_train.rollouts import Rollouts
from apr_train.supervise import health_of
from apr_train.tasks.base import Problem
from rollout.engine import Completion, EngineDied, EngineError, Sampling
from rollout.engines import http_server, vllm_http
from rollout.engines.boot import HEADER, NamedBoot
from rollout.engines.http_answers import read_completion, read_missing, read_models, read_success
from rollout.engines.vllm_http import VllmHttpEngine, server_command

PROBLEMS = [Problem(f"p{k}", f"a{k}=", "1") for k in range(4)]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revival, "PAUSE", 0.05)


VERDICT = Judge(lambda response, reference: "wrong")


def weights() -> Iterator[tuple[str, Tensor]]:
    yield "a", torch.tensor([1.0])


def engine_of(served: Served, folder: Path, **options: Any) -> VllmHttpEngine:
    return VllmHttpEngine(served.url, max_context=1000, weights_folder=folder, vocabulary=SIZE, **options)


def sampled(engine: VllmHttpEngine, **options: Any) -> list[Any]:
    rollouts = Rollouts(engine, DIALECT, PARALLEL, VERDICT, BUDGET, **options)
    found = Revival(rollouts).run(weights, lambda: rollouts.collect(PROBLEMS, temperature=1.0, seed=3))
    return [each.trajectory for each in found]


@pytest.mark.parametrize("what", ["died", "restarted", "hang", "stuck"])
def test_a_server_that_dies_or_is_restarted_unnoticed_samples_the_same_tokens(tmp_path: Path, what: str) -> None:
    calm = Served()
    expected = sampled(engine_of(calm, tmp_path))
    shaken = Served({9: what, calm.calls: what}, hang=4.0)
    engine = engine_of(shaken, tmp_path, timeout_seconds=2.0 if what in ("hang", "stuck") else 30.0)
    assert sampled(engine, restarts=9) == expected  # start weights would sample others
    assert len(shaken.loaded) >= 2 and set(shaken.loaded) == set(calm.loaded)
    assert engine.policy_version == 1 and not list(tmp_path.glob("*.safetensors"))
    for each in (calm, shaken):
        each.close()


def test_a_server_that_stays_away_is_one_line(tmp_path: Path) -> None:
    served = Served({3: "died"})
    engine = engine_of(served, tmp_path)
    served.restart = lambda: None
    told: list[str] = []
    with pytest.raises(EngineLost, match=r"is not back, rank 0: .* (broke off|does not answer)") as caught:
        sampled(engine, deadlines=Deadlines({"engine_start": 1.0}, told.append))
    assert not told
    assert "\n" not in str(caught.value) and served.url.removesuffix("/v1") in str(caught.value)
    served.close()


def test_a_server_that_does_not_name_its_start_is_refused_before_it_samples(tmp_path: Path) -> None:
    served = Served(named=False)
    with pytest.raises(EngineError, match=r"does not say which start .*: use scripts/serve_sampler\.py"):
        engine_of(served, tmp_path)
    served.close()


def test_a_call_that_waits_for_its_turn_is_not_late(tmp_path: Path) -> None:
    served = Served(dict.fromkeys(range(1, 5), "hang"), hang=0.5)
    engine = engine_of(served, tmp_path, max_in_flight=1, timeout_seconds=1.5)
    assert len(engine.run(engine.complete([1], Sampling(2, (), seed=k)) for k in range(4))) == 4
    served.close()


def test_only_one_client_sends_the_weights_and_all_count_them(tmp_path: Path) -> None:
    served, asked = Served(), list[str]()

    def gathered() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights():
            asked.append(name)
            yield name, tensor

    first, second = engine_of(served, tmp_path), engine_of(served, tmp_path, sends_to=())
    for engine in (first, second):
        engine.load_weights(gathered())
    assert len(served.loaded) == 1 and asked == ["a", "a"]
    assert first.policy_version == second.policy_version == 1
    served.close()


def test_a_cache_that_calls_given_up_still_hold_is_emptied_a_little_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_http, "_CACHE_PAUSE", 0.01)
    served, answers = Served(), [False, False, True]
    answer = served.answer

    def slow(handler: Any, asked: Any) -> None:
        if handler.path == "/reset_prefix_cache":
            return served.send(handler, {"success": answers.pop(0)})
        return answer(handler, asked)

    served.answer = slow
    engine_of(served, tmp_path).load_weights(weights())
    assert not answers
    served.close()


# -- answers that are none ---------------------------------------------------------------------------------------------

GOOD = completion((5, 7), (-0.5, -1.5), "stop")


def changed(**parts: Any) -> dict[str, Any]:
    return {"choices": [GOOD["choices"][0] | parts]}


BAD: dict[str, tuple[Any, str]] = {
    "html": (b"<html>it works</html>", "bytes that are no JSON"),
    "empty": (b"", "it is no object"),
    "not utf-8": (b'{"choices": "\xff\xfe"}', "no JSON"),
    "deep": (b"[" * 100_000, "no JSON"),
    "list": ([1, 2], "it is no object"),
    "nothing": ({}, "choices is missing"),
    "null choices": ({"choices": None}, "choices is no list"),
    "no choices": ({"choices": []}, "choices is empty"),
    "text choice": ({"choices": ["x"]}, r"choices\[0\] is no object"),
    "no ids": (changed(token_ids=None), "token_ids is no list"),
    "no logprobs": (changed(logprobs=None), "logprobs is no object"),
    "no finish": ({"choices": [{"token_ids": [5]}]}, "finish_reason is missing"),
    "aborted": (changed(finish_reason="abort"), "ended a call with 'abort'"),
    "fewer logprobs": (changed(logprobs={"token_logprobs": [-1.0]}), "2 ids and 1 log-probs"),
    "none sampled": (completion((), (), "stop"), "0 ids and 0 log-probs"),
    "too many": (completion((1,) * 5, (-1.0,) * 5, "length"), "5 ids and 5 log-probs where 1 to 4"),
    "another stop": (changed(token_ids=[5, 6]), "no stop id"),
    "id above": (changed(token_ids=[SIZE, 7]), "no id of the vocabulary"),
    "id below": (changed(token_ids=[-1, 7]), "no id of the vocabulary"),
    "id is text": (changed(token_ids=["5", 7]), "no id of the vocabulary"),
    "id is a truth": (changed(token_ids=[True, 7]), "no id of the vocabulary"),
    "id is broken": (changed(token_ids=[5.0, 7]), "no id of the vocabulary"),
    "nan": (changed(logprobs={"token_logprobs": [float("nan"), -1.0]}), "no log-probability"),
    "inf": (changed(logprobs={"token_logprobs": [float("inf"), -1.0]}), "no log-probability"),
    "-inf": (changed(logprobs={"token_logprobs": [-float("inf"), -1.0]}), "no log-probability"),
    "positive": (changed(logprobs={"token_logprobs": [0.1, -1.0]}), "no log-probability"),
    "null": (changed(logprobs={"token_logprobs": [None, -1.0]}), "no log-probability"),
    "gateway": ((404, {"content-type": "text/html"}, b"<html>\nnot here"), "answered 404: <html>"),
    "broken error": ((400, {"content-type": "application/json"}, b"{oops"), "answered 400: {oops"),
    "odd error": ((400, {"content-type": "application/json"}, b'{"error": "x"}'), "answered 400: .*error"),
    "escapes": ((400, {}, b"\x1b[2Jred"), r"answered 400: \\x1b\[2Jred"),
    "cut off": ((200, {"content-length": "5000"}, b'{"choices": ['), "broke off|no answer within"),
    "too long": (b" " * 3_000_000, "more than 1 MiB"),
    "compressed nonsense": ((200, {"content-encoding": "gzip"}, b"oops"), "compressed"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_answer_that_is_none_is_one_line_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(http_server, "LARGEST", 1 << 20)
    answer, says = BAD[name]
    served = Served({1: lambda _: answer})
    engine = engine_of(served, tmp_path, timeout_seconds=2.0)
    with pytest.raises(EngineError, match=says) as caught:
        engine.run([engine.complete([1], Sampling(4, (7,), seed=1))])
    assert "\n" not in str(caught.value) and served.url in str(caught.value)
    served.close()


def test_a_broken_server_is_dead_and_a_refusing_one_is_not(tmp_path: Path) -> None:
    for status, kind in ((500, EngineDied), (503, EngineDied), (400, EngineError), (302, EngineError)):
        served = Served({1: lambda _, status=status: (status, {}, b"{}")})
        engine = engine_of(served, tmp_path)
        with pytest.raises(EngineError) as caught:
            engine.run([engine.complete([1], Sampling(4, (7,), seed=1))])
        assert type(caught.value) is kind
        served.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "token_ids",
                    "logprobs",
                    "token_logprobs",
                    "finish_reason",
                    "data",
                    "id",
                    "results",
                    "success",
                ]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(answer=json_values | st.builds(lambda inner: {"choices": [inner]}, json_values))
def test_no_json_at_all_breaks_what_reads_it(answer: Any) -> None:
    with suppress(EngineError):
        assert read_models("http://x", answer)
    with suppress(EngineError):
        read_missing("http://x", answer)
    with suppress(EngineError):
        read_success("http://x", answer)
    with suppress(EngineError):
        read_completion("http://x", answer, Sampling(4, (7,)), SIZE)


LEAVES = [("finish_reason",), ("token_ids",), ("token_ids", 0), ("logprobs",), ("logprobs", "token_logprobs")]
LEAVES += [("logprobs", "token_logprobs", 1)]


@settings(max_examples=300)
@given(place=st.sampled_from(LEAVES), value=json_values | st.integers(-(10**400), 10**400) | st.floats(-9, 0))
def test_one_wrong_leaf_is_one_line_or_a_completion(place: tuple[Any, ...], value: Any) -> None:
    answer = json.loads(json.dumps(GOOD))
    inner = answer["choices"][0]
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with suppress(EngineError):
        done = read_completion("http://x", answer, Sampling(4, (7,)), SIZE)
        assert 0 < len(done.ids) == len(done.logprobs) <= 4 and all(-1e30 < each <= 1e-6 for each in done.logprobs)


def test_what_a_server_means_is_read_as_it_is() -> None:
    assert read_completion("", GOOD, Sampling(4, (7,)), SIZE) == Completion((5, 7), (-0.5, -1.5), "stop")
    assert read_models("", {"data": [{"id": "m", "max_model_len": 9}]}) == {"m": 9}


def test_every_answer_names_the_start_of_the_server_and_each_start_has_its_own_name() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"x"})

    def heads(server: NamedBoot) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(server({"type": "http"}, None, send))  # pyright: ignore[reportArgumentType]
        assert sent[1] == {"type": "http.response.body", "body": b"x"}
        return sent[0]["headers"]

    first, second = NamedBoot(app), NamedBoot(app)
    assert heads(first) == heads(first) != heads(second)
    assert heads(first)[0] == (b"a", b"b") and heads(first)[1][0] == HEADER.encode()


# -- the real one ------------------------------------------------------------------------------------------------------

SUPERVISE = """
import json, sys
from apr_train.supervise import Supervisor
sys.exit(Supervisor(json.loads(sys.argv[1]), sys.argv[2], pause=0.5).run())
"""


def policy(seed: int) -> Any:
    model = tiny_qwen3(seed)
    model.resize_token_embeddings(SIZE, mean_resizing=False)
    return model


@pytest.mark.slow
def test_a_real_server_killed_in_a_rollout_costs_no_token(tmp_path: Path) -> None:
    """By its supervisor it is started again, with its start weights; the trainer's are others."""
    model, port = save(policy(0), tmp_path / "model"), free_port()
    command = server_command(model, max_context=256, dtype="float32", port=port, cpu_kv_cache_gib=0.25)
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
    environment |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_HOST_IP": "127.0.0.1"}
    health = health_of("127.0.0.1", port)
    with (tmp_path / "log").open("w") as log:
        words = [sys.executable, "-c", SUPERVISE, json.dumps(command), health]
        supervisor = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    try:
        while not _is_well(health):
            assert supervisor.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.5)
        time.sleep(3)  # its supervisor has seen that too: a first start that fails is not repeated
        engine = VllmHttpEngine(f"http://127.0.0.1:{port}/v1", max_context=256, weights_folder=tmp_path)
        rollouts = Rollouts(engine, DIALECT, PARALLEL, VERDICT, BUDGET, deadlines=Deadlines({"engine_start": 120.0}))
        asked: list[int] = []
        complete = engine.complete

        async def killing(*call: Any) -> Completion:
            asked.append(1)
            if len(asked) == 10:
                psutil.Process(supervisor.pid).children()[0].send_signal(signal.SIGKILL)
            return await complete(*call)

        def collect() -> list[Any]:
            return [each.trajectory for each in rollouts.collect(PROBLEMS, temperature=1.0, seed=3)]

        expected = Revival(rollouts).run(policy(1).named_parameters, collect)
        start = Revival(rollouts).run(policy(0).named_parameters, collect)
        engine.policy_version = 0
        engine.complete = killing
        stage = Revival(rollouts)
        found = stage.run(policy(1).named_parameters, collect)
        assert stage.used >= 1
        assert [each.segments for each in found] != [each.segments for each in start]
        for one, other in zip(expected, found, strict=True):
            assert [s.ids for s in one.segments] == [s.ids for s in other.segments]
    finally:
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(60) == 0
    assert not _is_well(health)


def _is_well(health: str) -> bool:
    try:
        return httpx.get(health, timeout=5).is_success
    except httpx.HTTPError:
        return False
