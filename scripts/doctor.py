"""Says whether this machine can run an experiment, and what to do where it cannot.

python scripts/doctor.py experiment=quickstart             # overrides as for scripts/train.py
python scripts/doctor.py --quick                           # without training a step
python scripts/doctor.py --json experiment=quickstart      # the same as JSON on the last line

Exit code 0 when no check fails, 1 otherwise. Each check is a process of its own with a deadline: one that hangs or dies
costs its own line. This file imports nothing but the standard library, and what needs no more.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the packages may not be installed: that is one of the questions

from apr_train.doctor import CHECKS, Check, Finding, examine  # noqa: E402
from rollout.shown import one_line  # noqa: E402

WIDTH, NAME = 80, 15


def main(argv: Sequence[str] | None = None) -> int:
    """0: no check failed. 1: one did. 130: interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="train no step")
    parser.add_argument("--json", action="store_true", help="the findings as JSON on the last line")
    parser.add_argument("--only", choices=CHECKS, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="as for scripts/train.py, e.g. experiment=quickstart")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.only:  # a child: one check, its finding into a file
        arguments.to.write_text(json.dumps(asdict(examine(arguments.only, arguments.overrides))))
        return 0
    try:
        findings = judge_all(CHECKS, arguments.overrides, quick=arguments.quick)
    except KeyboardInterrupt:
        print("interrupted: the table is not complete", file=sys.stderr)
        return 130
    failed = [name for name, finding in findings.items() if finding.result == "fail"]
    print(f"failed: {', '.join(failed)}" if failed else "no check failed")
    if arguments.json:
        print(json.dumps({name: asdict(finding) for name, finding in findings.items()}))
    return 1 if failed else 0


def judge_all(
    checks: dict[str, Check],
    overrides: Sequence[str],
    *,
    quick: bool = False,
    command: Callable[[str, Path, Sequence[str]], list[str]] | None = None,
) -> dict[str, Finding]:
    """Runs the checks one after the other and prints each as a line of the table, as soon as it is known."""
    findings: dict[str, Finding] = {}
    print(f"{'check':<{NAME}} result what was found, and what to do")
    for name, check in checks.items():
        if check.slow and quick:
            continue
        if check.configured and (told := findings.get("configuration")) and told.result == "fail":
            findings[name] = Finding("warn", "not checked, for want of a configuration", "mend the configuration first")
        else:
            findings[name] = judge(name, check, overrides, command or child)
        print(row(name, findings[name]), flush=True)
    return findings


def child(name: str, to: Path, overrides: Sequence[str]) -> list[str]:
    """The command of one check."""
    return [sys.executable, str(Path(__file__).resolve()), "--only", name, "--to", str(to), "--", *overrides]


def judge(
    name: str, check: Check, overrides: Sequence[str], command: Callable[[str, Path, Sequence[str]], list[str]]
) -> Finding:
    """One check in a process group of its own, which is killed at the deadline."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    environment.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder, (Path(folder) / "log").open("wb") as log:
        to = Path(folder) / "finding.json"
        process = subprocess.Popen(
            command(name, to, overrides),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait(check.deadline_s)
        except subprocess.TimeoutExpired:
            advice = "it hangs or the machine is very busy: try again on an idle one, then look at this part"
            return Finding("fail", f"no answer within {check.deadline_s:g} s", advice)
        finally:
            with suppress(ProcessLookupError):  # its children too, also those it left behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        try:
            return Finding(**json.loads(to.read_text()))
        except (OSError, ValueError, TypeError):
            said = (Path(folder) / "log").read_text(errors="replace").strip().splitlines()
            last = f": {said[-1]}" if said else ""
            return Finding("fail", f"the check ended with exit code {code}{last}", "a library crashed: make setup")


def row(name: str, finding: Finding) -> str:
    """One line of the table, or several: at most 80 columns, nothing in it obeyed by a terminal.

    >>> print(row("python", Finding("fail", "3.9", "use Python 3.11")))
    python          fail   3.9
                           -> use Python 3.11
    """
    indent = " " * (NAME + 8)
    width = WIDTH - len(indent)
    lines = textwrap.wrap(one_line(finding.found), width, max_lines=4)
    if finding.advice:
        lines += textwrap.wrap(f"-> {one_line(finding.advice)}", width, subsequent_indent="   ", max_lines=4)
    return f"{name:<{NAME}} {finding.result:<6} " + f"\n{indent}".join(lines)


if __name__ == "__main__":
    sys.exit(main())
