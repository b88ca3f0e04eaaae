"""The benchmark files of mathematics: how many rows each has, their hash, and where the hub has the same data."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from apr_train.tasks.base import TaskError
from apr_train.tasks.jsonl import Row, cell, read_dataset, read_file

FOLDER = Path("data/benchmarks")
"""Where the configurations look for the files, from the working folder."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One file: its rows and their hash, and the hub's data set with the columns that hold problem and answer."""

    rows: int
    sha256: str
    """See `digest`."""
    dataset: str
    split: str
    problem: str
    answer: str
    config: str | None = None


BENCHMARKS: dict[str, Benchmark] = {
    "aime24": Benchmark(
        30,
        "9024b1b75f91f2caa8968cc878e61c7fc819349c63157f710d6d2f80c45e3066",
        *("HuggingFaceH4/aime_2024", "train", "problem", "answer"),
    ),
    "aime25": Benchmark(
        30,
        "a1328b649b4fd7043d0aa7557c96c19045a33193dba53ed25b4dbbdc27991dd0",
        *("math-ai/aime25", "test", "problem", "answer"),
    ),
    "amc23": Benchmark(
        40,
        "60911ad4dc1958ff1bae684f4443c23b25ca36a8cc43080652744cc9b9e67a76",
        *("math-ai/amc23", "test", "question", "answer"),
    ),
    "math500": Benchmark(
        500,
        "6bffb84bdea11595971c8acba67e403a6c943351ede9813eeef92e1844f4401e",
        *("HuggingFaceH4/MATH-500", "test", "problem", "answer"),
    ),
    "minerva_math": Benchmark(
        272,
        "3c39f61008825010d87b73586c3ebc95f3f5c43f6dbe5db83a8bc3932f694d72",
        *("math-ai/minervamath", "test", "question", "answer"),
    ),
    "olympiadbench": Benchmark(
        675,
        "63f9e7e9e6f5932504074bacfbf72130ca45fb71d9d0b7f430da8cb9218b87de",
        *("math-ai/olympiadbench", "test", "question", "final_answer"),
    ),
    "gsm8k_test": Benchmark(
        1319,
        "5daa56a7771d115d5a3eaa1e1dcc1584a51b73b2ed6acdf796d610bb5617c424",
        *("openai/gsm8k", "test", "question", "answer", "main"),
    ),
    "gsm8k_train": Benchmark(
        7473,
        "59d4191f3c681f1c91236c77075c39936d3864944d3a172c8e3d1a5d08643733",
        *("openai/gsm8k", "train", "question", "answer", "main"),
    ),
}
"""The hub's names and columns are those that public evaluation code loads; they were not checked against the hub."""
LEVEL = "level"
"""The column of the hub's MATH-500 that says how hard a problem is, 1 to 5; kept where a row has it."""


def digest(rows: Iterable[dict[str, str]]) -> str:
    """SHA-256 over (id, problem, answer) of all rows in order: other columns and JSON's spelling do not count."""
    found = hashlib.sha256()
    for row in rows:
        line = json.dumps([row["id"], row["problem"], row["answer"]], ensure_ascii=False) + "\n"
        found.update(line.encode())
    return found.hexdigest()


def from_file(path: Path) -> list[dict[str, str]]:
    """The rows of a local file with columns id, problem, answer and perhaps level. TaskError names a bad line."""
    names = ("id", "problem", "answer")
    return [
        {name: cell(where, row, name) for name in (*names, *([LEVEL] if LEVEL in row else []))}
        for where, row in read_file(str(path))
    ]


def from_hub(name: str) -> list[dict[str, str]]:
    """The same rows from the hub. TaskError when the data set cannot be had or has other columns."""
    benchmark = BENCHMARKS[name]
    rows = read_dataset(benchmark.dataset, benchmark.config, benchmark.split)
    return [_row(f"{name}-{index}", benchmark, place) for index, place in enumerate(rows)]


def _row(name: str, benchmark: Benchmark, place: Row) -> dict[str, str]:
    where, row = place
    given = row.get(benchmark.answer)
    if isinstance(given, list):  # OlympiadBench: one text for each answer
        row = {**row, benchmark.answer: ",".join(map(str, cast(list[object], given)))}
    answer = cell(where, row, benchmark.answer)
    if benchmark.dataset == "openai/gsm8k":  # a worked solution, then `#### 1,250`
        answer = answer.rpartition("####")[2].strip().replace(",", "")
    made = {"id": name, "problem": cell(where, row, benchmark.problem), "answer": answer}
    return made | ({LEVEL: cell(where, row, LEVEL)} if LEVEL in row else {})


def check(name: str, rows: list[dict[str, str]]) -> None:
    """TaskError unless these are the very rows that the figures in docs/benchmarks.md were measured on."""
    benchmark = BENCHMARKS[name]
    if len(rows) != benchmark.rows:
        raise TaskError(f"benchmark {name} has {len(rows)} rows and should have {benchmark.rows}")
    if (found := digest(rows)) != benchmark.sha256:
        raise TaskError(
            f"benchmark {name} has other rows than those measured here: sha256 {found[:12]}.. of ids, "
            f"problems and answers, expected {benchmark.sha256[:12]}.."
        )
