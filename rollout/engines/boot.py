"""Which start of a server answers, by a random name in every answer; and the end of one that serves no call."""

import os
import secrets
import signal

from rollout.engines.bearer import App, Message, Receive, Send

HEADER = "x-apr-boot"
REFUSED = "refused: "
"""Begins what a worker answers to weights that it cannot take."""
END = "/apr/end"
"""Ends the server. Behind the token, as all that changes what is served."""


class NamedBoot:
    """ASGI middleware for vLLM's `--middleware`: every answer says which start of the server gave it.

    A server that is started again serves the weights of its folder, not those that it was sent, and looks the same.
    """

    def __init__(self, app: App) -> None:
        self._app, self._name = app, secrets.token_hex(8).encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (HEADER.encode(), self._name)]}
            await send(message)

        await self._app({**scope, HEADER: self._name}, receive, named)


class Endable:
    """ASGI middleware that ends the server on POST END with the name of this start: whoever supervises it starts it
    again. A page in a browser, which can post to this machine, cannot read that name.

    An engine can hang behind a server that says that it is well. Only the client knows: nothing else is asked of the
    server when it looks, and one token does not come.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        asked = (scope["type"], scope.get("method"), scope.get("path")) == ("http", "POST", END)
        if asked and (HEADER.encode(), scope.get(HEADER)) in scope["headers"]:
            os.kill(os.getpid(), signal.SIGKILL)  # what hangs would also hang an orderly end
        await self._app(scope, receive, send)
