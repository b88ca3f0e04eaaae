"""Stopping on request: a signal sets a flag, every wait looks at it, all ranks agree, the run saves and can go on."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

from rollout.errors import UserError

Result = TypeVar("Result")

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""USR1 is what Slurm is asked to send ahead of the time limit, TERM what it and torchrun send before they kill."""
REQUEUE = 85
"""Exit code of a run that saved because it was told to stop: start the same command again and it goes on."""
POLL = 0.2
"""Seconds between two looks at the flag while rollouts are sampled."""


class Halted(UserError):
    """Training cannot go on. Raised on every rank at the same place; what was trained is saved before it ends."""


class Stopped(Halted):
    """The run was told to stop."""


class StopFlag:
    """Set by a signal; says which. A second signal of the same kind does what it does without us.

    >>> flag = StopFlag()
    >>> flag.listen()  # in the main thread
    >>> bool(flag), flag.reason  # after `kill -USR1`
    (True, 'SIGUSR1')
    """

    def __init__(self) -> None:
        self.reason = ""

    def __bool__(self) -> bool:
        return bool(self.reason)

    def listen(self) -> None:
        """Takes the signals of this process."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.set(signal.Signals(number).name)

    def set(self, reason: str) -> None:
        """Asks for a stop, as a signal does."""
        self.reason = self.reason or reason


def watched(
    coroutines: Sequence[Coroutine[Any, Any, Result]], flag: Callable[[], bool]
) -> list[Coroutine[Any, Any, Result | None]]:
    """The coroutines, and one more that raises Stopped as soon as `flag` says so, and else ends with the last of them.

    What runs them together cancels the others when one raises; the result of the last is None.
    """
    left, over = [len(coroutines)], asyncio.Event()

    async def counted(coroutine: Coroutine[Any, Any, Result]) -> Result:
        try:
            return await coroutine
        finally:
            left[0] -= 1
            if not left[0]:
                over.set()

    async def watch() -> None:
        while left[0]:
            if flag():
                raise Stopped("told to stop while rollouts were sampled")
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), POLL)

    return [*map(counted, coroutines), watch()]
