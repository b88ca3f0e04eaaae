"""Every wait has a name and a deadline: one that expires says where everything stood, ends the run and its children."""

import faulthandler
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

from apr_train.lost_rank import lost_contact, rank_lost

EXPIRED = 86
"""Exit code of a run that ended because a wait did not."""
TICK = 0.05
"""Seconds between two looks at a clock that stands just before its end."""


@dataclass(eq=False)
class _Wait:
    """One wait and its clock, which stands while a wait inside it has the turn."""

    name: str
    limit: float
    progress: Callable[[], str]
    clock: tuple[float, float | None] = (0.0, None)
    """Seconds up to when it was last stopped, and when it was started since, None while it stands: one value, for the
    watch thread reads it at any moment."""

    def go(self) -> None:
        self.clock = self.clock[0], time.monotonic()

    def stand(self) -> None:
        self.clock = self.waited(), None

    def waited(self) -> float:
        spent, since = self.clock
        return spent if since is None else spent + time.monotonic() - since


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
    spent: dict[str, float] = field(default_factory=lambda: defaultdict[str, float](float), init=False, repr=False)
    """Seconds waited so far, by name."""
    waits: list[_Wait] = field(default_factory=list[_Wait], init=False, repr=False)
    """Those that the main thread is in, the innermost last."""

    @contextmanager
    def __call__(self, name: str, progress: Callable[[], str] = str) -> Iterator[None]:
        """Waits inside are `name`; `progress` says how far they came. The time of a nested wait counts for that alone.

        Raises RankLost for an error of torch.distributed that says that another rank went away.
        """
        wait, over = _Wait(name, self.seconds.get(name, 0.0), progress), threading.Event()
        outer = self.waits[-1] if self.waits else None
        if outer:
            outer.stand()
        self.waits.append(wait)
        wait.go()
        if wait.limit:
            threading.Thread(target=self._watch, args=(wait, over), name=f"deadline {name}", daemon=True).start()
        try:
            yield
        except RuntimeError as error:
            if not lost_contact(error):
                raise
            raise rank_lost(error, f" in {name} after {wait.waited():.0f} s", self._reached()) from error
        finally:
            over.set()
            self.spent[name] += wait.waited()
            self.waits.remove(wait)
            if outer:
                outer.go()

    def _watch(self, wait: _Wait, over: threading.Event) -> None:
        while (left := wait.limit - wait.waited()) > 0:
            if over.wait(max(left, TICK)):  # until then the clock may have stood for a while
                return
        if over.is_set():
            return
        told = f"{wait.name} did not end in {wait.limit:g} s (waited {wait.waited():.0f} s)"
        if far := self._reached():
            told += f"; it got to: {far}"
        (self.expire or end_process)(told)

    def _reached(self) -> str:
        """How far all waits came, the innermost first."""
        return ", ".join(far for wait in reversed(self.waits) if (far := wait.progress()))


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
