"""Verifies mathematical answers with math-verify, in child processes that are killed at a deadline."""

import json
import math
import os
import queue
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path
from typing import IO, Any, Self, cast

from rewards.verdict import Verdict
from rewards.verify.answer import answer_text
from rollout.errors import UserError

MAX_CHARACTERS = 512
"""Of one answer; the longest reference of the usual benchmarks has about 200."""
MEMORY_BYTES = 1 << 30
FIRST_SLICE_S = 0.5
"""An answer that takes longer is judged after all others of its batch; math-verify needs milliseconds."""
START_S = 120.0
"""Importing sympy takes seconds on a busy machine; the deadline of an answer starts after it."""

_NUMBER = re.compile(r"(?<![\w.])-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?(?![0-9])")
_SEVERAL = re.compile(r"-?[0-9]+(?:[.,][0-9]+)*(?:(?:\s|~|\\[ ;:]|\\q?quad)+-?[0-9]+(?:[.,][0-9]+)*)+")


class MathVerifierError(UserError, RuntimeError):
    """math-verify cannot run at all, or the verifier was closed. Says what to do."""


class _WorkerDied(Exception):
    """The child is gone."""


def extract(response: str) -> str | None:
    r"""The answer in a response: the content of the last `\boxed{}`, else the last number; None where there is none.

    Searched is the text after </think>; a response without any think tag is all answer. An unclosed box, more than
    512 characters, and numbers side by side (math-verify would add them up) are no answer.

    >>> extract(r"<think>\boxed{1}</think>So \boxed{\frac{1}{2}}."), extract("That makes 1,250 dollars.")
    ('\\frac{1}{2}', '1,250')
    """
    tagged = "<think>" in response or "</think>" in response
    text = answer_text(response) if tagged else response
    if text is None:
        return None
    if r"\boxed{" in text:
        found = _braced(text, text.rindex(r"\boxed{") + len(r"\boxed{"))
    else:
        numbers = _NUMBER.findall(text)
        found = numbers[-1] if numbers else None
    if found is None or not found.strip() or len(found) > MAX_CHARACTERS or _SEVERAL.fullmatch(found.strip()):
        return None
    return found.strip()


def _braced(text: str, start: int) -> str | None:
    depth, index = 1, start
    while index < len(text):
        if text[index] == "\\":
            index += 1  # an escaped brace is a character, not a bracket
        elif text[index] in "{}":
            depth += 1 if text[index] == "{" else -1
            if depth == 0:
                return text[start:index]
        index += 1
    return None


class _Worker:
    """One child. `ask` is not thread-safe: the verifier lends a worker to one thread at a time."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
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
        except (_WorkerDied, OSError):
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
            [sys.executable, "-IB", script, str(MEMORY_BYTES), str(math.ceil(self._deadline_s) + 2)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            bufsize=0,
        )
        try:
            ready = self._read(self._process, START_S)
        except (TimeoutError, _WorkerDied) as error:
            self.stop()
            if again and isinstance(error, _WorkerDied):
                return self._start(again=False)
            raise MathVerifierError(f"math-verify did not start ({error!r}): run {script} by hand") from error
        if ready != {"ready": True}:
            raise MathVerifierError(f"math-verify did not start: {ready['reason']}")
        return self._process

    @staticmethod
    def _read(process: "subprocess.Popen[bytes]", seconds: float) -> dict[str, Any]:
        """The next reply; TimeoutError past the deadline, _WorkerDied at end of file."""
        descriptor = cast(IO[bytes], process.stdout).fileno()
        poll = select.poll()  # select() fails for descriptors above 1023, which a trainer can have
        poll.register(descriptor, select.POLLIN)
        end, data = time.monotonic() + seconds, b""
        while not data.endswith(b"\n"):
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                raise TimeoutError
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise _WorkerDied
            data += chunk
        return json.loads(data)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                cast(IO[bytes], pipe).close()


class MathVerifier:
    """Thread-safe verifier over `workers` children; each starts at its first answer and again after it was killed.

    `timeout`: the comparison took over `deadline_s` seconds. `error`: two children died of it, or the reference is
    unreadable.
    `unparsable`: no answer, or one that is no mathematics although the reference is.
    Raises MathVerifierError when math-verify is not installed, and after `close`.

    >>> with MathVerifier() as verify:
    ...     verify(r"<think></think>\\boxed{1/2}", "0.5")
    'correct'
    """

    def __init__(self, deadline_s: float = 5.0, workers: int = 1) -> None:
        if find_spec("math_verify") is None:
            raise MathVerifierError("math-verify is not installed: pip install 'math-verify[antlr4_9_3]'")
        if deadline_s <= 0 or workers < 1:
            raise MathVerifierError(f"deadline_s > 0 and workers >= 1 needed, got {deadline_s} and {workers}")
        self._workers = [_Worker(deadline_s) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._deadline_s, self._closed = deadline_s, False

    def __call__(self, response: str, answer: str) -> Verdict:
        """Blocks until a worker is free, then at most `deadline_s`, plus a child's start where one is needed."""
        return self._judge(response, answer, self._deadline_s)

    def _judge(self, response: str, answer: str, deadline_s: float) -> Verdict:
        if self._closed:
            raise MathVerifierError("the math verifier is closed: make a new one")
        text = extract(response)
        if not 0 < len(answer.strip()) <= MAX_CHARACTERS:
            return "error"
        if text is None:
            return "unparsable"
        worker = self._idle.get()
        try:
            if self._closed:  # while this thread waited
                raise MathVerifierError("the math verifier is closed: make a new one")
            return worker.ask(text, answer.strip(), deadline_s)
        finally:
            self._idle.put(worker)

    def verify_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of (response, answer) pairs, in order, on all workers at once.

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
