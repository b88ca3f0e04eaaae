"""Rows of a corpus, one at a time, from a JSONL, JSON or Parquet file, a folder, or a dataset of the hub."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from apr_train.corpora.base import CorpusError
from rollout.errors import shortened

FILES = (".jsonl", ".json", ".parquet")


def read_rows(path: str, split: str = "train") -> Iterator[tuple[str, object]]:
    """(where it stands, row) of every row; where a line of JSONL is no JSON, the row is None.

    A file is read as its name ends. A folder, or what is no path at all, goes to `datasets.load_dataset` with `split`.
    CorpusError when there is no such file or dataset, or when the file as a whole is not what its name says.

    >>> next(read_rows("train.jsonl"))
    ('train.jsonl:1', {'qwen_text': '...'})
    """
    file = Path(path).expanduser()
    if file.is_file():
        if file.suffix not in FILES:
            raise CorpusError(f"{path} ends in none of {', '.join(FILES)}")
        reader = {".jsonl": _lines, ".json": _array, ".parquet": _parquet}[file.suffix]
        for number, row in enumerate(reader(file), start=1):
            yield f"{file.name}:{number}", row
        return
    if not file.exists() and (file.suffix in FILES or path.startswith(("/", ".", "~")) or path.count("/") > 1):
        raise CorpusError(f"there is no file {path}")
    for number, row in enumerate(_dataset(str(file) if file.exists() else path, split), start=1):
        yield f"{file.name}[{split}]:{number}", row


def _lines(file: Path) -> Iterator[object]:
    with file.open("rb") as lines:
        for line in lines:
            yield _json(line)


def _json(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # bad JSON, bad UTF-8, absurd numbers, absurd nesting
        return None


def _array(file: Path) -> Iterator[object]:
    rows = _json(file.read_bytes())
    if not isinstance(rows, list):
        raise CorpusError(f"{file} holds no JSON array of rows; name it .jsonl if it has a row a line")
    yield from cast(list[object], rows)


def _parquet(file: Path) -> Iterator[object]:
    parquet: Any = import_module("pyarrow.parquet")  # slow to import: only who needs it waits
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=64):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise CorpusError(f"{file} is no sound Parquet file ({error})") from error


def _dataset(name: str, split: str) -> Iterator[object]:
    load_dataset = import_module("datasets").load_dataset
    try:
        rows: Any = load_dataset(name, split=split)
    except Exception as error:  # the hub client raises many kinds, all of them "this dataset cannot be had"
        why = shortened(error.__cause__ or error)
        raise CorpusError(f"cannot load dataset {name} ({split}): {why}") from error
    yield from rows
