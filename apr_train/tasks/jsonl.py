"""Problems from JSONL files or a Hugging Face dataset, judged by math-verify; demonstrations from a JSONL file."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from apr_train.tasks.base import Form, Problem, Split, TaskError
from apr_train.tasks.split import generator, split_of
from rewards.verdict import Verifier
from rewards.verify.math import MathVerifier
from rollout.demonstration import Block, Demonstration
from rollout.errors import shortened
from rollout.options import hint


@dataclass(frozen=True, slots=True)
class JsonlOptions:
    """Exactly one of `path` (a file), `paths` (several) and `dataset` (a hub name or folder for
    `datasets.load_dataset`). `Problem.meta["source"]` names the file (without its ending) or the dataset."""

    path: str | None = None
    paths: tuple[str, ...] = ()
    dataset: str | None = None
    config: str | None = None
    """The dataset's configuration, e.g. `main`."""
    split: str = "train"
    """The dataset's split to train on."""
    heldout_path: str | None = None
    heldout_split: str | None = None
    heldout_share: float = 0.05
    """Share of the problems held out by a hash of their text, where no held-out file or split is named."""
    heldout_only: bool = False
    """All rows are held out, and to train on them is refused: a benchmark."""
    problem_column: str = "problem"
    answer_column: str = "answer"
    id_column: str | None = None
    """null numbers the rows: gsm8k_train:1."""
    level_column: str | None = None
    """How hard a problem is, for `Problem.meta["level"]` of the rows that have this column."""
    suffix: str = ""
    """Written after every problem."""
    demonstrations: str | None = None
    """JSONL of {"id" or "problem": .., "reasoning": ["text", {"threads": [["outline", "body"], ..]}], "answer": ..}."""
    deadline_s: float = 5.0
    verifier_workers: int = 1

    def __post_init__(self) -> None:
        if [self.path is None, not self.paths, self.dataset is None].count(False) != 1:
            raise TaskError(
                "task jsonl needs exactly one of data.options.path, data.options.paths and data.options.dataset"
            )
        if self.heldout_path is not None and self.heldout_split is not None:
            raise TaskError("task jsonl takes heldout_path or heldout_split, not both")
        if self.heldout_split is not None and self.dataset is None:
            raise TaskError("task jsonl: heldout_split belongs to a dataset; a file's partner is heldout_path")
        if self.heldout_only and (self.heldout_path is not None or self.heldout_split is not None):
            raise TaskError("task jsonl: heldout_only=true holds every row out; name no heldout_path or heldout_split")
        if not 0 < self.heldout_share < 1:
            raise TaskError(f"task jsonl needs 0 < heldout_share < 1, got {self.heldout_share}")


Row = tuple[str, Mapping[str, Any]]
"""Where it stands (`gsm8k.jsonl:12`) and its columns."""


def read_file(path: str) -> Iterator[Row]:
    """The rows of a JSONL file, one at a time. TaskError with file, line and reason at the first that is no object."""
    if not Path(path).is_file():
        raise TaskError(f"{path} is a folder; name a JSONL file" if Path(path).is_dir() else f"there is no file {path}")
    with Path(path).open("rb") as lines:
        if lines.peek(2).startswith(b"\x1f\x8b"):
            raise TaskError(f"{path} is compressed; unpack it first")
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            if not line.strip():
                raise TaskError(f"{where}: empty line")
            try:
                row: object = json.loads(line)
            except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, absurd numbers, absurd nesting
                raise TaskError(f"{where}: not JSON ({shortened(error)})") from error
            if not isinstance(row, dict):
                raise TaskError(f"{where}: a row is an object, not {type(row).__name__}")
            yield where, cast(dict[str, Any], row)


def read_dataset(name: str, config: str | None, split: str) -> Iterator[Row]:
    """The rows of a Hugging Face dataset's split."""
    load_dataset = import_module("datasets").load_dataset  # slow to import: only who needs it waits

    try:
        rows: Any = load_dataset(name, config, split=split)
    except Exception as error:  # the hub client raises many kinds, all of them "this dataset cannot be had"
        why = shortened(error.__cause__ or error)
        raise TaskError(f"cannot load dataset {name} ({config or 'default'}, {split}): {why}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{name}[{split}]:{number}", row


def cell(where: str, row: Mapping[str, Any], column: str) -> str:
    """A column's text; numbers are written out. TaskError when it is missing, empty or something else."""
    if column not in row:
        raise TaskError(f"{where}: no column {column!r}; {hint(column, sorted(row))}")
    value = row[column]
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    if not number and not isinstance(value, str):
        raise TaskError(f"{where}: column {column!r} must be text or a number, got {value!r:.60}")
    if not str(value).strip():
        raise TaskError(f"{where}: column {column!r} is empty")
    if any("\ud800" <= character <= "\udfff" for character in str(value)):
        raise TaskError(f"{where}: column {column!r} is no Unicode text (it has half of a surrogate pair)")
    return str(value)


def read_demonstration(where: str, row: Mapping[str, Any]) -> Demonstration:
    """A row's worked solution. TaskError names what is wrong with it."""
    given = row.get("reasoning")
    pieces: list[str | Block] = []
    for piece in cast(list[Any], given) if isinstance(given, list) else []:
        match piece:
            case str():
                pieces.append(piece)
            case {"threads": [_, _, *_] as threads} if all(_is_thread(thread) for thread in cast(list[Any], threads)):
                pieces.append(Block(tuple((outline, body) for outline, body in cast(list[list[str]], threads))))
            case _:
                raise TaskError(
                    f'{where}: reasoning holds text and {{"threads": [[outline, body], [outline, body], ..]}} '
                    f"with two threads or more, got {piece!r:.60}"
                )
    if not pieces:
        raise TaskError(f"{where}: reasoning must be a list of at least one piece")
    return Demonstration(tuple(pieces), cell(where, row, "answer"))


def _is_thread(thread: Any) -> bool:
    return isinstance(thread, list) and [type(part) for part in cast(list[Any], thread)] == [str, str]


class Jsonl:
    """Problems as they are in the data. `parts` is the size of the demonstration's first block, if there is one.

    All rows are read and checked when the task is made. Without a held-out file or split, problems are held out by
    a hash of their text, so a text that occurs twice stays on one side. A worked solution with threads serves both
    forms: the sequential one writes the threads' bodies one after the other.
    """

    name = "jsonl"
    forms: tuple[Form, ...] = ("sequential", "parallel")

    def __init__(self, options: JsonlOptions) -> None:
        self.options = options
        self.verifier: Verifier = MathVerifier(options.deadline_s, options.verifier_workers)
        self._demonstrations = self._read_demonstrations()
        self._problems: dict[Split, list[Problem]] = {"train": [], "heldout": []}
        ids: dict[str, str] = {}
        for split, source, where, row in self._rows():
            problem = self._problem(source, where, row)
            if problem.id in ids:
                raise TaskError(f"{where}: id {problem.id!r} was already used at {ids[problem.id]}")
            ids[problem.id] = where
            text = problem.meta["problem"]
            side = split or split_of(f"jsonl {text}", options.heldout_share)
            self._problems[side].append(problem)
        self._check_sides(ids)

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """See Task. No row comes twice: TaskError when the split has fewer than `count`, or none on purpose."""
        random = generator(self.name, split, count, seed)
        if count and split == "train" and self.options.heldout_only:
            raise TaskError(
                f"{self._named()} is for evaluation only (data.options.heldout_only=true): train on other data, "
                "or set algorithm.steps=0 and sft=none"
            )
        if count > len(self._problems[split]):
            key = "data.train_problems" if split == "train" else "eval.problems"
            has = len(self._problems[split])
            raise TaskError(f"{key}={count}: ask for fewer {split} problems, the data has {has}")
        return random.sample(self._problems[split], count)

    def size(self, split: Split) -> int:
        """How many problems the data has of a split."""
        return len(self._problems[split])

    def demonstration(self, problem: Problem, form: Form) -> Demonstration:
        """See Task. TaskError when the demonstrations file has none for the problem, or none with threads."""
        found = self._demonstrations.get(problem.id) or self._demonstrations.get(problem.meta["problem"])
        if found is None:
            source = self.options.demonstrations or "data.options.demonstrations (null)"
            raise TaskError(f"no demonstration of problem {problem.id} in {source}")
        if form == "sequential":
            return Demonstration(tuple(_flat(piece) for piece in found.reasoning), found.answer)
        if problem.parts == 1:
            raise TaskError(f"problem {problem.id} is demonstrated without threads: only the sequential form exists")
        return found

    def _named(self) -> str:
        several = ", ".join(Path(path).stem for path in self.options.paths)
        return self.options.path or several or str(self.options.dataset)

    def _rows(self) -> Iterator[tuple[Split | None, str, str, Any]]:
        """(split, None where the hash decides; source; where the row stands; the row)."""
        options = self.options
        apart = options.heldout_path is not None or options.heldout_split is not None
        first: Split | None = "heldout" if options.heldout_only else "train" if apart else None
        if options.dataset is not None:
            yield from _from(first, options.dataset, read_dataset(options.dataset, options.config, options.split))
        for path in options.paths or ([] if options.path is None else [options.path]):
            yield from _from(first, Path(path).stem, read_file(path))
        if options.heldout_path is not None:
            yield from _from("heldout", Path(options.heldout_path).stem, read_file(options.heldout_path))
        elif options.heldout_split is not None:
            name = str(options.dataset)
            yield from _from("heldout", name, read_dataset(name, options.config, options.heldout_split))

    def _problem(self, source: str, where: str, row: Mapping[str, Any]) -> Problem:
        options = self.options
        problem = cell(where, row, options.problem_column).strip()
        answer = cell(where, row, options.answer_column).strip()
        place = where if options.dataset is not None else f"{source}:{where.rpartition(':')[2]}"
        name = place if options.id_column is None else cell(where, row, options.id_column)
        found = self._demonstrations.get(name) or self._demonstrations.get(problem)
        parts = None
        if found is not None:
            parts = next((len(piece.threads) for piece in found.reasoning if isinstance(piece, Block)), 1)
        meta = {"problem": problem, "source": source}
        if options.level_column is not None and options.level_column in row:
            meta["level"] = cell(where, row, options.level_column)
        return Problem(name, problem + options.suffix, answer, parts, meta)

    def _check_sides(self, ids: dict[str, str]) -> None:
        trained = {problem.meta["problem"]: problem.id for problem in self._problems["train"]}
        for problem in self._problems["heldout"]:
            if (twin := trained.get(problem.meta["problem"])) is not None:
                raise TaskError(f"{ids[problem.id]}: held-out problem is also in train at {ids[twin]}; remove one")
        for split, problems in self._problems.items():
            if not problems and not (split == "train" and self.options.heldout_only):
                apart = self.options.heldout_path if split == "heldout" else None
                source = apart or self._named()
                raise TaskError(f"task jsonl: {source} has no {split} rows; add rows or set heldout_share")

    def _read_demonstrations(self) -> dict[str, Demonstration]:
        """By id or problem text, as each row says."""
        found: dict[str, Demonstration] = {}
        for where, row in read_file(self.options.demonstrations) if self.options.demonstrations else ():
            key = cell(where, row, "id" if "id" in row else "problem").strip()
            if key in found:
                raise TaskError(f"{where}: a second demonstration of {key!r:.60}")
            found[key] = read_demonstration(where, row)
        return found


def _from(split: Split | None, source: str, rows: Iterator[Row]) -> Iterator[tuple[Split | None, str, str, Any]]:
    for where, row in rows:
        yield split, source, where, row


def _flat(piece: str | Block) -> str:
    if isinstance(piece, str):
        return piece
    return "".join(f"{Block((thread,)).in_sequence().strip()}\n" for thread in piece.threads)
