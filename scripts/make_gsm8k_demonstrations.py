"""Writes demonstrations for problems that come with a final answer only, in the format of the `jsonl` task.

    python scripts/make_gsm8k_demonstrations.py data/gsm8k_train.jsonl [data/gsm8k_demonstrations.jsonl]

They teach the form, not mathematics. Each sentence with numbers becomes a thread that restates it briefly; a problem
whose numbers stand in one clause gets no threads. Where some expression over all numbers of the problem, each once,
gives the answer, its calculations are shown: in a thread when all their inputs are there, else after the join. Such an
expression is found by search, so it can be right by accident: it is found for 36% of GSM8K's problems, and for 13% of
them when each is given another one's answer. A row says which it is: `"steps": "search"` or `"none"`.

Rows in: id, problem, answer. The same file gives the same demonstrations.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from apr_train.tasks.base import TaskError
from apr_train.tasks.jsonl import read_file
from rollout.shown import one_line

Role = Literal["any", "factor", "divisor"]
"""What a given number may do: `twice` and `80%` only multiply, `half` and `third` only divide."""
SPELLED = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
WORDS: dict[str, tuple[int, Role]] = {
    **{word: (number, "any") for number, word in enumerate(SPELLED, start=2)},
    **{"twenty": (20, "any"), "dozen": (12, "factor"), "twice": (2, "factor"), "thrice": (3, "factor")},
    **{"double": (2, "factor"), "doubled": (2, "factor"), "triple": (3, "factor"), "tripled": (3, "factor")},
    **{"half": (2, "divisor"), "third": (3, "divisor"), "quarter": (4, "divisor")},
}
"""Numbers that problems spell out."""
NUMBER = re.compile(rf"\d+(?:,\d{{3}})*(?:\.\d+)?%?|\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=[.?!])\s+")
CLAUSE = re.compile(r"[,;]\s+|\s+(?:and|but|then|while)\s+")
MOST_THREADS = 3
MOST_CLAUSES, MOST_WORDS = 2, 10
"""Clauses that a thread restates, and words of each."""
MOST_OPERATIONS = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One calculation, and the threads that its inputs come from."""

    left: Fraction
    operation: str
    right: Fraction
    result: Fraction
    threads: frozenset[int]

    def __str__(self) -> str:
        return f"{written(self.left)}{self.operation}{written(self.right)}={written(self.result)}"


@dataclass(frozen=True, slots=True)
class Value:
    """A number at hand: given (no steps) or calculated."""

    number: Fraction
    threads: frozenset[int]
    role: Role = "any"
    steps: tuple[Step, ...] = ()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("problems", type=Path)
    parser.add_argument("demonstrations", type=Path, nargs="?", default=Path("data/gsm8k_demonstrations.jsonl"))
    arguments = parser.parse_args()
    try:
        rows = [demonstration(row) for row in read_problems(arguments.problems)]
    except TaskError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    arguments.demonstrations.parent.mkdir(parents=True, exist_ok=True)
    arguments.demonstrations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {
        "rows": len(rows),
        "with_steps": sum(row["steps"] == "search" for row in rows),
        "with_threads": sum(any(isinstance(piece, dict) for piece in row["reasoning"]) for row in rows),
    }
    print(json.dumps(counts))
    return 0


def read_problems(path: Path) -> Iterator[dict[str, str]]:
    """Rows of id, problem and answer, as text. TaskError with file, line and reason."""
    for where, row in read_file(str(path)):
        for column in ("id", "problem", "answer"):
            if not str(row.get(column, "")).strip():
                raise TaskError(f"{where}: column {column!r} is missing or empty")
        yield {column: str(row[column]).strip() for column in ("id", "problem", "answer")}


def demonstration(row: dict[str, str]) -> dict[str, Any]:
    r"""One row of the demonstrations file.

    >>> demonstration({"id": "a", "problem": "Tom has 3 boxes of 4. Ann has 5. How many in all?", "answer": "17"})
    {'id': 'a', 'reasoning': [{'threads': [[' 3 boxes', ' Tom has 3 boxes of 4\n3*4=12'], [' has 5', ' Ann has 5']]},
    '\n5+12=17\n'], 'answer': '\\boxed{17}', 'steps': 'search'}
    """
    facts = facts_of(row["problem"])
    found = expression(facts, row["answer"])
    steps = found.steps if found else ()
    inside = [[step for step in steps if step.threads == {k}] for k in range(len(facts))]
    threads = [[outline(fact), body(fact, own)] for fact, own in zip(facts, inside, strict=True)]
    after = [step for step in steps if len(step.threads) > 1]
    reasoning: list[Any] = [{"threads": threads}] if len(facts) > 1 else [f"{text.strip()}\n" for _, text in threads]
    if after:
        reasoning.append("\n" + "".join(f"{step}\n" for step in after))
    return {
        "id": row["id"],
        "reasoning": reasoning or ["\n"],
        "answer": rf"\boxed{{{row['answer']}}}",
        "steps": "search" if found else "none",
    }


def facts_of(problem: str) -> list[list[str]]:
    """Clauses with numbers, thread by thread: one per sentence, or per clause when one sentence holds them all.

    What is over MOST_THREADS joins the last.
    """
    sentences = [[c for c in CLAUSE.split(s) if NUMBER.search(c)] for s in SENTENCE.split(problem)]
    facts = [clauses for clauses in sentences if clauses]
    if len(facts) == 1:
        facts = [[clause] for clause in facts[0]]
    last = [clause for clauses in facts[MOST_THREADS - 1 :] for clause in clauses]
    return [*facts[: MOST_THREADS - 1], *([last] if last else [])]


def outline(clauses: list[str]) -> str:
    """The thread's first number with the word after it, or else before it: ` 12 pages`."""
    words, first = words_of(clauses[0])
    return " " + " ".join(words[first : first + 2] if words[first + 1 :] else words[-2:])


def body(clauses: list[str], steps: list[Step]) -> str:
    """The clauses, at most MOST_WORDS words of each, then the calculations that need nothing else."""
    kept: list[str] = []
    for words, first in map(words_of, clauses[:MOST_CLAUSES]):
        start = max(0, min(first - MOST_WORDS // 2, len(words) - MOST_WORDS))
        kept.append(" ".join(words[start : start + MOST_WORDS]))
    return " " + "; ".join(kept) + "".join(f"\n{step}" for step in steps)


def words_of(clause: str) -> tuple[list[str], int]:
    """The words of a clause, and which is its first number."""
    words = clause.strip().rstrip(".,;:?!").split()
    return words, next(index for index, word in enumerate(words) if NUMBER.search(word))


def expression(facts: list[list[str]], answer: str) -> Value | None:
    """The first expression over all given numbers, each once, whose value is the answer; None when there is none.

    One of two numbers may be used twice (`48/2=24, 48+24=72`). Leaving numbers out, or repeating one of three, finds
    answers of other problems about as often as the problem's own.
    """
    try:
        goal = Fraction(answer.replace(",", ""))
    except ValueError:
        return None
    given = [
        given_value(number, k)
        for k, clauses in enumerate(facts)
        for clause in clauses
        for number in NUMBER.findall(clause)
    ]
    if not 2 <= len(given) <= MOST_OPERATIONS + 1:
        return None
    found = search(given, goal)
    if found is None and len(given) == 2:
        found = next((found for again in given if (found := search([*given, again], goal))), None)
    return found


def search(values: list[Value], goal: Fraction) -> Value | None:
    """Combines all values, two at a time, in the first way that gives the goal."""
    if len(values) == 1:
        return values[0] if values[0].number == goal else None
    for i, j in combinations(range(len(values)), 2):
        rest = [value for k, value in enumerate(values) if k not in (i, j)]
        for combined in combine(values[i], values[j]):
            if found := search([*rest, combined], goal):
                return found
    return None


def combine(a: Value, b: Value) -> Iterator[Value]:
    """What two values give: positive, and short to write."""
    threads, steps = a.threads | b.threads, a.steps + b.steps
    for operation, left, right, result in results(a, b):
        if result > 0 and 100 % result.denominator == 0:
            step = Step(left, operation, right, result, threads)
            yield Value(result, threads, steps=(*steps, step))


def results(a: Value, b: Value) -> Iterator[tuple[str, Fraction, Fraction, Fraction]]:
    """All (operation, left, right, result) that the roles allow; the smaller is taken from the greater."""
    x, y = a.number, b.number
    roles = {a.role, b.role}
    if roles == {"any"}:
        yield "+", x, y, x + y
        yield "-", max(x, y), min(x, y), abs(x - y)
    if 1 in (x, y):
        return  # to multiply or divide by 1 is no step
    if roles in ({"any"}, {"any", "factor"}):
        yield "*", x, y, x * y
    if a.role == "any" and b.role != "factor" and y:
        yield "/", x, y, x / y
    if b.role == "any" and a.role != "factor" and x:
        yield "/", y, x, y / x


def given_value(number: str, thread: int) -> Value:
    """`1,250` is 1250, `80%` a factor of 4/5, `half` a divisor of 2."""
    if number.lower() in WORDS:
        value, role = WORDS[number.lower()]
        return Value(Fraction(value), frozenset([thread]), role)
    plain = Fraction(number.rstrip("%").replace(",", ""))
    is_share = number.endswith("%")
    return Value(plain / 100 if is_share else plain, frozenset([thread]), "factor" if is_share else "any")


def written(number: Fraction) -> str:
    """`4/5` -> 0.8; every number here is a decimal fraction."""
    return str(number.numerator) if number.denominator == 1 else f"{float(number):.6f}".rstrip("0")


if __name__ == "__main__":
    sys.exit(main())
