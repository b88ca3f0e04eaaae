"""Every wait has a name and a deadline: one that expires says where everything stood, ends the run and its children."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

EXPIRED = 86
"""Exit code of a run that ended because a wait did not."""


@dataclass
class Deadlines:
    """Seconds that each kind of wait may take; a kind that is not named, or at 0, may take forever.

    A watch thread ends the process, since the main thread may sit in a collective or an engine that never returns.

    >>> deadlines = Deadlines({"rollout": 600})
    >>> with deadlines("rollout", lambda: "12 of 64 trajectories"):
    ...     sample()
    """

    seconds: dict[str, float] = field(default_factory=dict[str, float])
    expire: Callable[[str], None] | None = None
    """What to do with the message instead of ending the process; for tests."""

    @contextmanager
    def __call__(self, name: str, progress: Callable[[], str] = str) -> Iterator[None]:
        """Waits inside are `name`; `progress` says how far they came. Nested waits each have their own deadline."""
        limit = self.seconds.get(name, 0.0)
        if not limit:
            yield
            return
        started, over = time.monotonic(), threading.Event()

        def watch() -> None:
            if not over.wait(limit):
                waited = time.monotonic() - started
                told = f"{name} did not end in {limit:g} s (waited {waited:.0f} s)"
                if far := progress():
                    told += f"; it got to: {far}"
                (self.expire or end_process)(told)

        thread = threading.Thread(target=watch, name=f"deadline {name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()


def end_process(message: str) -> None:
    """Says what expired and where every thread is, kills all children, ends with EXPIRED. Never returns."""
    rank = os.environ.get("RANK", "0")
    print(f"error: rank {rank}: {message}; deadline.* sets how long a wait may take", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    sys.stderr.flush()
    kill_children()
    os._exit(EXPIRED)  # the main thread may never run again: no handler, no atexit


def kill_children() -> None:
    """SIGKILL to every descendant of this process."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended by itself
            child.kill()
