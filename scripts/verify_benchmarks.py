"""Tries the verifier on the benchmark files: every reference against itself, restated, and changed into a wrong answer.

    python scripts/verify_benchmarks.py                       # all eight files in data/benchmarks, 1,000 wrong answers
    python scripts/verify_benchmarks.py --folder FOLDER --wrong 200 --seed 3 --workers 4 aime24 math500

`boxed`: the reference in a box. `said`: "The answer is 204." where the reference is a plain number. `restated`: the
same mathematics in other notation, checked by scripts/latex_values.py. `wrong`: changed, and different by the same
check; pairs that it cannot read are left out and counted. Prints what was judged against expectation, a table, and a
last line of JSON. Exit code 1 when a wrong answer was accepted.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from latex_values import differs
from perturbed_answers import perturbed, restated

from apr_train.tasks.benchmarks import BENCHMARKS, FOLDER, from_file
from rewards.verdict import Verdict
from rewards.verify.math import MathVerifier
from rewards.verify.notation import number
from rollout.errors import UserError
from rollout.shown import one_line, visible

SAID = "The answer is {}."
BOXED = "\\boxed{{{}}}"
KINDS = ("boxed", "said", "restated", "wrong")


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to judge; `what` is the kind of change or restatement."""

    file: str
    id: str
    gold: str
    kind: str
    what: str
    response: str

    def as_expected(self, verdict: Verdict) -> bool:
        """Whether a right answer was accepted, or a wrong one not."""
        return (verdict == "correct") != (self.kind == "wrong")


def main(argv: Sequence[str] | None = None) -> int:
    """0: no wrong answer was accepted. 1: some were. 2: the files cannot be read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="which files; none: all eight")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--wrong", type=int, default=1000, help="wrong answers, equal shares of files and kinds")
    parser.add_argument("--rows", type=int, default=None, help="of each file, drawn; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--deadline", type=float, default=5.0, metavar="SECONDS")
    arguments = parser.parse_args(argv)
    random, started = Random(arguments.seed), time.perf_counter()
    try:
        files = {name: from_file(arguments.folder / f"{name}.jsonl") for name in arguments.names or BENCHMARKS}
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    if arguments.rows is not None:
        files = {name: random.sample(rows, min(arguments.rows, len(rows))) for name, rows in files.items()}
    wrong, left_out = wrong_cases(files, arguments.wrong, random)
    cases = [case for name, rows in files.items() for case in right_cases(name, rows)] + wrong
    with MathVerifier(arguments.deadline, arguments.workers) as verify:
        verdicts = verify.verify_many([(case.response, case.gold) for case in cases])
    for case, verdict in zip(cases, verdicts, strict=True):
        if not case.as_expected(verdict):
            print(visible(f"{case.id}: {case.kind} ({case.what}) was {verdict}: {case.response} for {case.gold}"))
    report = summary(cases, verdicts, left_out) | {
        "seed": arguments.seed,
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(table(cases, verdicts, list(files)))
    print(json.dumps(report))
    return 1 if report["false_accepts"] else 0


def right_cases(name: str, rows: list[dict[str, str]]) -> list[Case]:
    """Each reference boxed, said where it is a plain number, and restated where that is surely the same."""
    cases: list[Case] = []
    for row in rows:
        gold = row["answer"]
        cases.append(Case(name, row["id"], gold, "boxed", "as it is", BOXED.format(gold)))
        if number(gold) is not None and "\\" not in gold:
            cases.append(Case(name, row["id"], gold, "said", "as it is", SAID.format(gold)))
        for what, text in restated(gold):
            if differs(gold, text) is False:
                cases.append(Case(name, row["id"], gold, "restated", what, BOXED.format(text)))
    return cases


def wrong_cases(files: dict[str, list[dict[str, str]]], count: int, random: Random) -> tuple[list[Case], int]:
    """`count` wrong answers, or as many as there are: of every file in turn, of every kind in turn. And how many
    changes were left out because nobody could say that they changed anything."""
    pools: list[list[Case]] = []
    left_out = 0
    for name, rows in files.items():
        golds = [row["answer"] for row in rows]
        kinds: dict[str, list[Case]] = {}
        for row in random.sample(rows, min(len(rows), 700)):
            for what, text in perturbed(row["answer"], golds, random):
                if not differs(row["answer"], text):
                    left_out += 1
                    continue
                case = Case(name, row["id"], row["answer"], "wrong", what, BOXED.format(text))
                kinds.setdefault(what, []).append(case)
        pools.append(in_turn(list(kinds.values())))
    return in_turn(pools)[:count], left_out


def in_turn(pools: list[list[Case]]) -> list[Case]:
    """The first of each, then the second of each, and so on."""
    longest = max(map(len, pools), default=0)
    return [pool[index] for index in range(longest) for pool in pools if index < len(pool)]


def summary(cases: list[Case], verdicts: list[Verdict], left_out: int) -> dict[str, object]:
    """Counts, and the ids of what was judged against expectation."""
    odd = [case for case, verdict in zip(cases, verdicts, strict=True) if not case.as_expected(verdict)]
    return {
        "cases": dict(Counter(case.kind for case in cases)),
        "wrong_kinds": dict(Counter(case.what for case in cases if case.kind == "wrong")),
        "left_out": left_out,
        "false_accepts": [f"{case.id} {case.what}" for case in odd if case.kind == "wrong"],
        "false_rejects": {kind: [case.id for case in odd if case.kind == kind] for kind in KINDS[:-1]},
        "timeouts": sum(verdict == "timeout" for verdict in verdicts),
        "errors": sum(verdict == "error" for verdict in verdicts),
    }


def table(cases: list[Case], verdicts: list[Verdict], names: list[str]) -> str:
    """Markdown: accepted of judged, for every file and kind."""
    lines = [f"| file | {' | '.join(KINDS)} |", f"|---|{'---:|' * len(KINDS)}"]
    for name in [*names, "all"]:
        cells: list[str] = []
        for kind in KINDS:
            mine = [v for c, v in zip(cases, verdicts, strict=True) if c.kind == kind and name in (c.file, "all")]
            cells.append(f"{mine.count('correct')} of {len(mine)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
