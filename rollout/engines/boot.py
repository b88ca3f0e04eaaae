"""Which start of a server answers: a random name in every answer, so that one that was restarted is noticed."""

import secrets

from rollout.engines.bearer import App, Message, Receive, Send

HEADER = "x-apr-boot"


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

        await self._app(scope, receive, named)
