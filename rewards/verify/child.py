"""Child processes that judge model text for a verifier: each is killed at a deadline and started again."""

import json
import math
import os
import queue
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import IO, Any, Self, cast

from rewards.verdict import Verdict
from rollout.errors import UserError

FIRST_SLICE_S = 0.5
"""An answer that takes longer is judged after all others of its batch; most need milliseconds."""
START_S = 120.0
"""Importing sympy takes seconds on a busy machine; the deadline of an answer starts after it."""


class ChildError(UserError, RuntimeError):
    """The judging library cannot run at all, or the verifier was closed. Says what to do."""


class WorkerDied(Exception):
    """The child is gone."""


class Worker:
    """One child. `ask` is not thread-safe: the verifier lends a worker to one thread at a time."""

    def __init__(
        self, deadline_s: float, memory_bytes: int, library: str, error: type[ChildError], judge: tuple[str, ...] = ()
    ) -> None:
        """`library` is named in errors, which are of type `error`. `judge`: the file of another judge than that of
        mathematics, and its own arguments."""
        self._deadline_s, self._memory_bytes, self._judge = deadline_s, memory_bytes, judge
        self._library, self._error = library, error
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, answer: str, gold: str, deadline_s: float, again: bool = True) -> Verdict:
        """The verdict. A child that dies may have been killed by others: the next one is asked `again`, once."""
        try:
            process = self._process or self._start()
            request = json.dumps({"answer": answer, "gold": gold}) + "\n"
            cast(IO[bytes], process.stdin).write(request.encode())
            return self._read(process, deadline_s)["verdict"]
        except TimeoutError:
            self.stop()
            return "timeout"
        except (WorkerDied, OSError):
            self.stop()
            return self.ask(answer, gold, deadline_s, again=False) if again else "error"
        except BaseException:  # an interrupt in between would leave a reply that the next answer would take for its own
            self.stop()
            raise

    def _start(self, again: bool = True) -> "subprocess.Popen[bytes]":
        # -I: this folder holds a math.py that must not shadow the standard library's, and PYTHONPATH has no say in what
        # judges. -B: nothing is written. The environment is no copy of ours, which holds tokens. Own session: a Ctrl-C
        # at the terminal is for the trainer, which still needs verdicts while it finishes the step.
        script = str(Path(__file__).with_name("math_worker.py"))
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-IB",
                script,
                str(self._memory_bytes),
                str(math.ceil(self._deadline_s) + 2),
                *self._judge,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            bufsize=0,
        )
        try:
            ready = self._read(self._process, START_S)
        except (TimeoutError, WorkerDied) as error:
            self.stop()
            if again and isinstance(error, WorkerDied):
                return self._start(again=False)
            raise self._error(f"{self._library} did not start ({error!r}): run {script} by hand") from error
        if ready != {"ready": True}:
            raise self._error(f"{self._library} did not start: {ready['reason']}")
        return self._process

    @staticmethod
    def _read(process: "subprocess.Popen[bytes]", seconds: float) -> dict[str, Any]:
        """The next reply; TimeoutError past the deadline, WorkerDied at end of file."""
        descriptor = cast(IO[bytes], process.stdout).fileno()
        poll = select.poll()  # select() fails for descriptors above 1023, which a trainer can have
        poll.register(descriptor, select.POLLIN)
        end, data = time.monotonic() + seconds, b""
        while not data.endswith(b"\n"):
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                raise TimeoutError
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise WorkerDied
            data += chunk
        return json.loads(data)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                cast(IO[bytes], pipe).close()


class ChildVerifier:
    """Thread-safe judging over workers, an answer a worker at a time. A verifier says in `_judge` what it asks.

    `timeout`: the judge took over `deadline_s` seconds. `error`: two children died of the answer.
    """

    def __init__(self, deadline_s: float, workers: Sequence[Worker], name: str, error: type[ChildError]) -> None:
        self._workers, self._name, self._error = list(workers), name, error
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._deadline_s, self._closed = deadline_s, False

    def __call__(self, response: str, reference: str) -> Verdict:
        """Blocks until a worker is free, then at most `deadline_s`, plus a child's start where one is needed."""
        return self._judge(response, reference, self._deadline_s)

    def _judge(self, response: str, reference: str, deadline_s: float) -> Verdict:
        """The verdict, by `_ask` or without it."""
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._closed:
            raise self._error(f"the {self._name} verifier is closed: make a new one")

    def _ask(self, text: str, gold: str, deadline_s: float) -> Verdict:
        """What a worker says; waits for one."""
        worker = self._idle.get()
        try:
            self._check_open()  # it may have been closed while this thread waited
            return worker.ask(text, gold, deadline_s)
        finally:
            self._idle.put(worker)

    def verify_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of (response, reference) pairs, in order, on all workers at once.

        Answers that take long are put off until all others have theirs: a hung one costs the others a short slice, not
        the deadline, however many hang at once.
        """
        verdicts: list[Verdict] = ["timeout"] * len(pairs)
        with ThreadPoolExecutor(len(self._workers)) as pool:
            for deadline_s in (min(FIRST_SLICE_S, self._deadline_s), self._deadline_s):
                slow = [index for index, verdict in enumerate(verdicts) if verdict == "timeout"]
                chosen = [pairs[index] for index in slow]
                judged = pool.map(self._judge, *zip(*chosen, strict=True), repeat(deadline_s)) if chosen else ()
                for index, verdict in zip(slow, judged, strict=True):
                    verdicts[index] = verdict
        return verdicts

    def close(self) -> None:
        """Ends the children, after the answers in work. Calling it again does nothing."""
        if not self._closed:
            self._closed = True
            workers = [self._idle.get() for _ in self._workers]
            for worker in workers:
                worker.stop()
                self._idle.put(worker)  # wakes who still waits for one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
