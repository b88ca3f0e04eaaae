"""Puts the benchmark files of mathematics into data/benchmarks, from the hub or from a local folder, and checks them.

    python scripts/fetch_benchmarks.py                      # all eight, from the hub
    python scripts/fetch_benchmarks.py aime24 math500       # only these
    python scripts/fetch_benchmarks.py --from FOLDER        # FOLDER/aime24.jsonl and so on, with id, problem, answer
    python scripts/fetch_benchmarks.py --check              # only checks what lies in data/benchmarks

Each file must have the number of rows and the hash that apr_train/tasks/benchmarks.py pins; another one is not written,
unless --other says that other rows are wanted (a newer version on the hub, another order). The last line is JSON.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from apr_train.tasks.base import TaskError
from apr_train.tasks.benchmarks import BENCHMARKS, FOLDER, check, digest, from_file, from_hub
from rollout.errors import UserError
from rollout.options import hint
from rollout.shown import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """0: every file is there and is what it should be. 2: some are not; each is said in one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none: all")
    parser.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="a local folder, not the hub")
    parser.add_argument("--to", type=Path, default=FOLDER, metavar="FOLDER", help=f"default {FOLDER}")
    parser.add_argument("--check", action="store_true", help="write nothing, check the files in --to")
    parser.add_argument("--other", action="store_true", help="take rows with another hash, and say so")
    arguments = parser.parse_args(argv)
    told: dict[str, dict[str, object]] = {}
    for name in arguments.names or BENCHMARKS:
        try:
            told[name] = fetch(name, arguments.source, arguments.to, arguments.check, arguments.other)
        except (UserError, OSError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
    print(json.dumps(told))
    return 0 if len(told) == len(arguments.names or BENCHMARKS) else 2


def fetch(name: str, source: Path | None, to: Path, only_check: bool, other: bool) -> dict[str, object]:
    """One benchmark: its rows, checked and written; what the last line says of it."""
    if name not in BENCHMARKS:
        raise TaskError(f"there is no benchmark {name!r}: {hint(name, BENCHMARKS)}")
    file = to / f"{name}.jsonl"
    local = file if only_check else source / file.name if source is not None else None
    rows = from_hub(name) if local is None else from_file(local)
    try:
        check(name, rows)
    except TaskError as error:
        if not other:
            raise TaskError(f"{error}; --other takes them all the same") from error
        print(f"{one_line(error)}; taken because of --other")
    if not only_check:
        write(file, rows)
    print(f"{file}: {len(rows)} rows")
    return {"rows": len(rows), "sha256": digest(rows)}


def write(file: Path, rows: list[dict[str, str]]) -> None:
    """The whole file or none: it is written aside and then gets its name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.part")
    aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(aside, file)


if __name__ == "__main__":
    sys.exit(main())
