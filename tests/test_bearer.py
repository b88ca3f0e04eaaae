"""The sampler's token: on every request of ours, asked for on every route of the server, and never told to others."""

import asyncio
import signal
import sys
from collections.abc import MutableMapping
from typing import Any

import pytest
import torch
from test_vllm_http import FakeServer
from tiny_models import save, tiny_qwen3

from apr_train.compose import load
from apr_train.config import ConfigError
from rollout.engine import EngineError, Sampling
from rollout.engines.bearer import EveryRoute, TokenError, is_loopback, token_of
from rollout.engines.boot import END, HEADER, Endable, NamedBoot
from rollout.engines.vllm_http import VllmHttpEngine, server_command

TOKEN = "canary-token-of-the-test"
OK = (200, '{"results": [[]], "success": true}')


@pytest.mark.parametrize("token", [None, TOKEN])
def test_every_request_carries_the_token(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    if token is None:
        monkeypatch.delenv("VLLM_API_KEY", raising=False)
    else:
        monkeypatch.setenv("VLLM_API_KEY", token)
    fake = FakeServer([OK, OK])
    engine = VllmHttpEngine(fake.url, max_context=64, weights_folder=tmp_path)
    engine.load_weights([("a", torch.zeros(1))])
    assert [path for path, _ in fake.asked] == [
        *("/v1/models", "/v1/completions", "/collective_rpc", "/reset_prefix_cache")
    ]
    assert {header for _, header in fake.asked} == {None if token is None else f"Bearer {TOKEN}"}
    fake.http.shutdown()


@pytest.mark.parametrize("status", [401, 302, 500])
def test_what_a_server_answers_never_shows_the_token(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("VLLM_API_KEY", TOKEN)
    fake = FakeServer([(status, "{}")])
    engine = VllmHttpEngine(fake.url, max_context=64)
    with pytest.raises(EngineError, match="VLLM_API_KEY" if status == 401 else str(status)) as caught:
        engine.run([engine.complete([1], Sampling(4, ()))])
    assert TOKEN not in str(caught.value) and fake.requests == 3  # a redirect is not followed with the token
    fake.http.shutdown()


@pytest.mark.parametrize("token", ["two words", "line\nend", "tökèn"])
def test_a_token_that_no_header_carries_is_refused_unseen(token: str) -> None:
    with pytest.raises(TokenError, match="VLLM_API_KEY") as caught:
        token_of({"VLLM_API_KEY": token})
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True)),
        *((None, False), ("", False), ("10.0.0.1", False), ("node7", False), ("::", False), ("0", False)),
        *(("127.0.0.1.example.org", False), ("localhost.example.org", False), (".".join("0000"), False)),
    ],
)
def test_only_loopback_is_loopback(host: str | None, local: bool) -> None:
    assert is_loopback(host) is local


def test_a_server_of_ours_listens_to_this_machine_unless_told_and_then_asks_for_a_token(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tiny_qwen3(0), tmp_path / "model")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)

    def command(**host: str) -> list[str]:
        return server_command(tmp_path / "model", max_context=64, dtype="float32", port=8000, **host)

    alone = command()
    assert alone[alone.index("--host") + 1] == "127.0.0.1" and alone.count("--middleware") == 2
    with pytest.raises(TokenError, match="VLLM_API_KEY"):
        command(host="10.0.0.1")
    monkeypatch.setenv("VLLM_API_KEY", "guessed")
    with pytest.raises(TokenError, match="16 characters or more"):
        command(host="10.0.0.1")
    monkeypatch.setenv("VLLM_API_KEY", TOKEN)
    for words in (command(), command(host="10.0.0.1")):
        layers = [words[at + 1].rpartition(".") for at, word in enumerate(words) if word == "--middleware"]
        found = [getattr(sys.modules[module], name) for module, _, name in layers]
        assert found == [Endable, EveryRoute, NamedBoot]  # the last one sees a request first
        assert TOKEN not in " ".join(words)  # `ps` shows command lines


# The middleware, as an ASGI server calls it


def statuses(kind: str, path: str, *headers: tuple[bytes, bytes], method: str = "POST") -> list[Any]:
    """What a request is answered with; 200 is the app behind."""
    sent: list[MutableMapping[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {}

    scope = {"type": kind, "path": path, "method": method, "headers": list(headers)}
    asyncio.run(EveryRoute(Endable(app))({**scope, HEADER: b"this start"}, receive, send))  # pyright: ignore[reportArgumentType]
    return [message.get("status", message.get("code")) for message in sent if message["type"] != "http.response.body"]


GOOD = (b"authorization", f"Bearer {TOKEN}".encode())


@pytest.mark.parametrize("path", ["/v1/models", "/collective_rpc", "/reset_prefix_cache", "/sleep", "/health/x", "/"])
def test_no_route_answers_without_the_token(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("VLLM_API_KEY", TOKEN)
    assert statuses("http", path) == [401]
    assert statuses("http", path, method="OPTIONS") == [401]
    assert statuses("http", path, (b"authorization", b"Bearer other")) == [401]
    assert statuses("http", path, (b"authorization", TOKEN.encode())) == [401]
    assert statuses("http", path, GOOD, GOOD) == [401]
    assert statuses("websocket", path) == [1008]
    assert statuses("http", path, GOOD) == [200]


def test_the_server_ends_for_those_alone_who_have_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setenv("VLLM_API_KEY", TOKEN)
    monkeypatch.setattr("rollout.engines.boot.os.kill", lambda process, number: ended.append(number))
    assert statuses("http", END) == [401] and statuses("http", END, GOOD, method="GET") == [200]
    assert statuses("http", "/v1/models", GOOD) == [200] and not ended
    name = HEADER.encode()
    assert statuses("http", END, GOOD) == statuses("http", END, GOOD, (name, b"an earlier one")) == [200] and not ended
    assert statuses("http", END, (name, b"this start")) == [401] and not ended
    statuses("http", END, GOOD, (name, b"this start"))
    assert ended == [signal.SIGKILL]


def test_only_health_is_open_and_a_server_without_a_token_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", TOKEN)
    assert statuses("http", "/health") == statuses("lifespan", "") == [200]
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(TokenError, match="not set"):
        statuses("http", "/health")


# The address of a run


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://10.0.0.1:8000/v1", "another machine: set VLLM_API_KEY"),
        ("https://sampler.example.org/v1", "another machine: set VLLM_API_KEY"),
        ("http://127.0.0.1.example.org/v1", "another machine: set VLLM_API_KEY"),
        ("http://[::1/v1", "is no address"),
    ],
)
def test_a_server_elsewhere_needs_a_token(monkeypatch: pytest.MonkeyPatch, url: str, says: str) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=says):
        load(["rollout=vllm_http", f"rollout.urls=['{url}']"])
    if "no address" not in says:
        monkeypatch.setenv("VLLM_API_KEY", TOKEN)
        assert load(["rollout=vllm_http", f"rollout.urls=['{url}']"]).rollout.urls == [url]


def test_a_token_that_no_header_carries_is_found_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "two words")
    with pytest.raises(ConfigError, match="no header can carry"):
        load(["rollout=vllm_http"])


@pytest.mark.parametrize("engine", ["vllm_http", "auto"])
@pytest.mark.parametrize("login", ["me:s3cret-pw@", "s3cret-pw@", "me:s3cret-pw@evil.org\\@"])
def test_an_address_with_a_password_is_refused_and_not_repeated(engine: str, login: str) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.urls holds user:password@.*VLLM_API_KEY") as caught:
        load([f"rollout={engine}", f"rollout.urls=['http://{login}127.0.0.1:8000/v1']"])
    assert "s3cret-pw" not in str(caught.value)
