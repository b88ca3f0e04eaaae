"""The child process that judges answers: a JSON line in, a verdict out. Started as a file, imports only the judge.

First line out: {"ready": true}, or why not. Then {"answer": "1/2", "gold": "0.5"} gives {"verdict": "correct"}. The
judge is math-verify, or what `load` of another file of ours gives (gym_judge.py).
"""

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any, TextIO

Judge = Callable[[str, str], str]
"""(answer, gold) to a verdict other than `timeout`."""

OPEN_FILES = 32
"""The three pipes, and what a library opens to read its own data."""


def judge(math_verify: Any, answer: str, gold: str) -> str:
    """A verdict other than `timeout`. An answer that is no mathematics where the gold is, is `unparsable`."""

    def parse(text: str) -> list[Any]:
        # The parent holds the deadline: math-verify's own one is a signal that C code and sympy's excepts can swallow.
        # LaTeX only: by default, what is no LaTeX is judged by the last number in it, so that `73 @ 72` would be 72.
        reader = [math_verify.LatexExtractionConfig()]
        return math_verify.parse(
            rf"\boxed{{{text}}}", extraction_config=reader, parsing_timeout=None, raise_on_error=True
        )

    gold_values = parse(gold)
    if not gold_values:
        return "error"
    try:
        values = parse(answer)
    except MemoryError:
        raise
    except Exception:  # parsers of model text may raise anything, and it is always the text
        return "unparsable"
    if math_verify.verify(gold_values, values, timeout_seconds=None, raise_on_error=True):
        return "correct"
    mathematical = [any(not isinstance(value, str) for value in side) for side in (gold_values, values)]
    return "unparsable" if mathematical == [True, False] or not values else "wrong"


def load_judge(words: list[str]) -> Judge:
    """The judge: of mathematics, or of the file that `words` begin with, made from the other words."""
    if not words:
        library = import_module("math_verify")
        return lambda answer, gold: judge(library, answer, gold)
    spec = spec_from_file_location("judge", words[0])
    if spec is None or spec.loader is None:
        raise ImportError(words[0])
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(*words[1:])


def serve(judge_of: Judge, requests: TextIO, replies: TextIO, cpu_s: int) -> None:
    """Answers each request line until the parent closes the pipe."""
    for line in requests:
        # An orphan must not compute for ever; the limit counts the process's whole life, so it moves along.
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + cpu_s)
        request = json.loads(line)
        try:
            verdict = judge_of(request["answer"], request["gold"])
        except Exception:  # whatever the library raises is the verifier's failure, and counted as such
            verdict = "error"
        print(json.dumps({"verdict": verdict}), file=replies, flush=True)


def limit(kind: int, value: int, *, for_good: bool = False) -> None:
    """Sets a soft limit, as far as the machine's hard limit allows; `for_good` lowers the hard one with it."""
    hard = resource.getrlimit(kind)[1]
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (soft, soft if for_good else hard))


def confine() -> None:
    """What judging needs no more, once everything is imported: new files and processes, and bytes in any file."""
    limit(resource.RLIMIT_NOFILE, OPEN_FILES, for_good=True)
    limit(resource.RLIMIT_NPROC, 0, for_good=True)  # the kernel counts per user, and does not count root's
    limit(resource.RLIMIT_FSIZE, 0, for_good=True)  # pipes are no files: replies still go out


def main() -> None:
    """argv: memory limit in bytes, CPU seconds per request; another judge's file and its own words."""
    # Slurm sends these to every process of a job. They are for the trainer, which needs verdicts until it has saved.
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    memory, cpu_s = int(sys.argv[1]), int(sys.argv[2])
    limit(resource.RLIMIT_AS, memory, for_good=True)
    limit(resource.RLIMIT_CORE, 0, for_good=True)
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not write into the replies
    try:
        judge_of = load_judge(sys.argv[3:])
    except Exception as error:  # the parent raises it
        print(json.dumps({"ready": False, "reason": repr(error)}), file=replies, flush=True)
        return
    confine()
    print(json.dumps({"ready": True}), file=replies, flush=True)
    serve(judge_of, sys.stdin, replies, cpu_s)


if __name__ == "__main__":
    main()
