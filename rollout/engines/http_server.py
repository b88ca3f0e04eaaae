"""One vLLM server as a client sees it: a request each, a deadline each, and always the same start of the server."""

import asyncio
import json
from collections.abc import Mapping
from typing import cast

import httpx

from rollout.engine import EngineDied, EngineError
from rollout.engines.bearer import VARIABLE
from rollout.engines.boot import HEADER
from rollout.engines.calls import first_line
from rollout.engines.http_answers import unreadable
from rollout.shown import visible

LARGEST = 64 << 20
"""Bytes of an answer that are read; a token takes about a hundred."""
_CONNECT_RETRIES = 2
"""Only connections that never came up are tried again; a request that was sent is not."""
_KEEP_ALIVE_SECONDS = 2.0
"""Shorter than the server's 5 s, so that no request goes out on a connection that the server is closing."""


class HttpServer:
    """The server at an address. `boot` names the start of it that was checked; None takes the next that answers."""

    def __init__(self, *, headers: Mapping[str, str], max_in_flight: int, seconds: float) -> None:
        self.seconds = seconds
        self.boot: str | None = None
        self._headers = {"accept-encoding": "identity", **headers}
        self._most = max_in_flight
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(max_in_flight)

    async def ask(self, method: str, url: str, body: Mapping[str, object] | None = None) -> object:
        """The JSON of the answer; None for a successful answer without a body.

        Raises EngineDied where the server is gone, stuck, broken or another start of itself; EngineError for a refusal
        and for an answer that is none. `seconds` count from when the request is sent, not while it waits for others.
        """
        client = self._here()
        async with self._slots:
            try:
                async with asyncio.timeout(self.seconds):
                    response, text = await _exchange(client, method, url, body, self.boot)
            except TimeoutError as error:
                raise EngineDied(
                    f"{url} gave no answer within {self.seconds:g} s (rollout.call_seconds): is the server stuck?"
                ) from error
            except httpx.ConnectError as error:
                raise EngineDied(f"no vLLM server at {url}: start one, or correct rollout.urls") from error
            except httpx.InvalidURL as error:
                raise EngineError(f"{visible(url)} is no address: correct rollout.urls") from error
            except httpx.HTTPError as error:
                raise EngineDied(f"{url} broke off ({visible(first_line(error))}): see the server's log") from error
        self._check_boot(url, response)
        if response.status_code == 401:
            raise EngineError(f"{url} wants a bearer token, or another one: set {VARIABLE} to the server's, here too")
        if not response.is_success:
            kind = EngineDied if response.is_server_error else EngineError
            raise kind(f"{url} answered {response.status_code}: {_reason(response, text)}")
        if HEADER not in response.headers:
            raise EngineError(f"{url} does not say which start of the server answers: use scripts/serve_sampler.py")
        return _json(url, text) if text else None

    async def close(self) -> None:
        """Closes the connections of this event loop."""
        if self._client is not None:
            await self._client.aclose()
        self._client = self._loop = None

    def _check_boot(self, url: str, response: httpx.Response) -> None:
        name = response.headers.get(HEADER)
        if name is None:  # a failure that some layer outside of ours reported
            return
        if self.boot is not None and name != self.boot:
            raise EngineDied(f"{url} was restarted: it serves the weights that it started with")
        self.boot = name

    def _here(self) -> httpx.AsyncClient:
        """The client of the running event loop: connections cannot move from one loop to another."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            limits = httpx.Limits(max_connections=self._most, keepalive_expiry=_KEEP_ALIVE_SECONDS)
            transport = httpx.AsyncHTTPTransport(retries=_CONNECT_RETRIES, limits=limits)
            # No deadline here: `ask` holds one over the whole exchange. Redirects are not followed, so that the token
            # goes to this server alone.
            client = httpx.AsyncClient(transport=transport, timeout=None, headers=self._headers)
            self._client, self._loop, self._slots = client, loop, asyncio.Semaphore(self._most)
        return self._client


async def _exchange(
    client: httpx.AsyncClient, method: str, url: str, body: Mapping[str, object] | None, boot: str | None
) -> tuple[httpx.Response, bytes]:
    read = bytearray()
    meant = {} if boot is None else {HEADER: boot}
    async with client.stream(method, url, json=body, headers=meant) as response:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise unreadable(url, "it is compressed, which was not asked for")
        async for piece in response.aiter_raw():
            read += piece
            if len(read) > LARGEST:
                raise unreadable(url, f"more than {LARGEST >> 20} MiB")
    return response, bytes(read)


def _json(url: str, text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # undecodable bytes are a ValueError too
        raise unreadable(url, f"{len(text)} bytes that are no JSON") from error


def _reason(response: httpx.Response, text: bytes) -> str:
    """What the server says went wrong: `error.message` of its JSON where there is one, else the text; one line."""
    said: object = text.decode(errors="replace")
    if response.headers.get("content-type", "").startswith("application/json"):
        try:
            answer: object = json.loads(text)
        except (ValueError, RecursionError):  # then the text itself says most
            answer = None
        error = cast(dict[str, object], answer).get("error") if isinstance(answer, dict) else None
        said = cast(dict[str, object], error).get("message", said) if isinstance(error, dict) else said
    return visible(next(iter(str(said).strip().splitlines()), "no reason given")[:300])
