"""The token between trainer and sampler: from the environment, sent with every request, asked for on every route."""

import hmac
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from ipaddress import ip_address
from typing import Any

from rollout.errors import UserError

VARIABLE = "VLLM_API_KEY"
"""vLLM's server reads the same one. The environment, because a command line is shown by `ps` and kept by shells."""
LEAST = 16
"""Characters of a token that other machines can try; the Slurm script makes 43."""
OPEN_ROUTES = ("/health",)
"""Answer without a token: says that the server is up and nothing else."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class TokenError(UserError, ValueError):
    """The token cannot be used, or is missing where it is needed. Never repeats it."""


def token_of(environment: Mapping[str, str] = os.environ) -> str | None:
    """The token, or None where none is set. Raises TokenError for one that no header can carry."""
    token = environment.get(VARIABLE)
    if not token:
        return None
    if not token.isascii() or not token.isprintable() or " " in token:
        raise TokenError(f"{VARIABLE} holds a character that no header can carry: use letters, digits and - only")
    return token


def is_loopback(host: str | None) -> bool:
    """Whether a host is this machine and cannot be reached from another one; only `localhost` is taken by name.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0"), is_loopback("127.0.0.1.example.org")
    (True, False, False)
    """
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


class EveryRoute:
    """ASGI middleware for vLLM's `--middleware`: no route but OPEN_ROUTES answers without the token.

    vLLM itself asks for it on /v1 and a few more, and not on the routes that load weights. Raises TokenError where
    no token is set, so that a server that should ask cannot start without.
    """

    def __init__(self, app: App) -> None:
        token = token_of()
        if token is None:
            raise TokenError(f"{VARIABLE} is not set: the server has no token to ask for")
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_ROUTES or self._is_known(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            head = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": head})
            await send({"type": "http.response.body", "body": b'{"error": {"message": "no or another bearer token"}}'})
        else:  # a websocket is refused before it is accepted
            await send({"type": "websocket.close", "code": 1008})

    def _is_known(self, scope: Message) -> bool:
        given = [value for name, value in scope.get("headers", ()) if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)
