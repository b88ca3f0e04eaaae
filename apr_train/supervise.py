"""Keeps a server running: starts it again when it died, kills it when it answers no more, ends it when told to."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType

import httpx

LOOK = 0.2
"""Seconds between two looks at the process."""
GRACE = 15.0
"""Seconds that a server has to end after it was told to: less than what Slurm gives before it kills."""


@dataclass
class Supervisor:
    """One server, and all processes that it starts: they are a process group of their own.

    >>> Supervisor(["vllm", ...], "http://127.0.0.1:8000/health").run()  # in the main thread
    0
    """

    command: Sequence[str]
    health: str
    """Answers 200 while the server is well."""
    environment: Mapping[str, str] | None = None
    restarts: int = 5
    """How often at most it is started again."""
    pause: float = 5.0
    """Seconds before that."""
    start_seconds: float = 1200.0
    """Until it answers first; 0: for ever."""
    hang_seconds: float = 60.0
    """Without an answer, after which it is killed."""
    say: Callable[[str], None] = print
    told: int = 0
    """The signal that ends it all."""
    was_well: bool = field(default=False, init=False)

    def run(self) -> int:
        """Serves until told to end (0), or until the server has died too often (its exit code, never 0).

        A first start that fails is not repeated: what is wrong then stays wrong.
        """
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        code = 0
        try:
            for left in range(self.restarts, -1, -1):
                code = self._serve()
                if self.told:
                    return 0
                if not self.was_well:
                    self.say(f"the server ended with {code} before it served")
                    return code or 1
                self.say(f"the server ended with {code}; {left} restarts left")
                if left and not self._waited(self.pause):
                    return 0
            return code or 1
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _serve(self) -> int:
        """One start of the server, to its end; its exit code."""
        process = subprocess.Popen(self.command, env=self.environment, start_new_session=True)
        answered, well, limit = time.monotonic(), False, self.start_seconds or float("inf")
        try:
            while not _is_over(process) and not self.told:
                if self._is_well():
                    answered, well, limit = time.monotonic(), True, self.hang_seconds
                    self.was_well = True
                elif time.monotonic() - answered > limit:
                    self.say(f"{self.health} gave no answer for {limit:g} s: the server is killed")
                    break
                self._waited(1.0 if well else LOOK, process)
            if self.told and not _is_over(process):
                process.send_signal(self.told)
                end = time.monotonic() + GRACE
                while not _is_over(process) and time.monotonic() < end:
                    time.sleep(LOOK)
        finally:
            with suppress(ProcessLookupError):  # also what a dead server left: it holds the memory that the next needs
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        return code

    def _is_well(self) -> bool:
        try:
            limit = max(1.0, self.hang_seconds / 4)
            return httpx.get(self.health, timeout=limit, trust_env=False).is_success  # no proxy stands between
        except httpx.HTTPError:
            return False

    def _waited(self, seconds: float, process: "subprocess.Popen[bytes] | None" = None) -> bool:
        """False as soon as this process is told to end; also returns when `process` has ended."""
        end = time.monotonic() + seconds
        while not self.told and time.monotonic() < end and not (process and _is_over(process)):
            time.sleep(LOOK)
        return not self.told

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.told = number


def _is_over(process: "subprocess.Popen[bytes]") -> bool:
    """Whether it has ended. It is not taken from the process table yet: its group's number is not another's."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def health_of(host: str, port: int) -> str:
    """Where a server that listens to `host` says that it is well.

    >>> health_of("10.0.0.1", 8000)
    'http://10.0.0.1:8000/health'
    """
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/health"
