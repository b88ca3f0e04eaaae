"""Shows what an import of a published corpus keeps, what it drops and why, before anything is trained on it.

python scripts/import_corpus.py sample_964/train.parquet --layout threadweaver --dialect npr --out report.json

With --dialect every kept row is also written in that dialect, played by the orchestrator and read by the strict check,
over a tokenizer of bytes (or --model's own), which is what SFT with data=corpus will do.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from apr_train.corpora import LAYOUTS, import_corpus
from apr_train.corpora.report import save, show
from apr_train.stored import check_writable
from rollout.errors import UserError
from rollout.shown import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """0: rows were kept, and the dialect took some. 1: none. 2: something the user can mend, told in one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", help="a .jsonl, .json or .parquet file, a folder, or a hub name")
    parser.add_argument("--layout", required=True, choices=LAYOUTS)
    parser.add_argument("--split", default="train", help="of a folder or hub dataset")
    parser.add_argument("--dialect", help="also check that this dialect can be trained on the kept rows")
    parser.add_argument("--model", help="a folder or hub name whose tokenizer --dialect uses")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    arguments = parser.parse_args(argv)
    try:
        check_writable(arguments.out)
        return run(arguments)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Imports, checks, shows and saves."""
    corpus = import_corpus(arguments.path, arguments.layout, arguments.split)
    reports = {"import": corpus.report}
    if arguments.dialect:
        from apr_train.corpora.roundtrip import Checker, byte_tokenizer, check_rows  # transformers takes seconds

        tokenizer = byte_tokenizer()
        if arguments.model:
            from apr_train.config import ModelConfig
            from apr_train.model import load_tokenizer

            tokenizer = load_tokenizer(ModelConfig(path=arguments.model))
        checker = Checker(arguments.dialect, tokenizer=tokenizer)
        reports[arguments.dialect] = check_rows(corpus.rows, checker)
    for report in reports.values():
        show(report)
    if arguments.out:
        save({name: report.as_dict() for name, report in reports.items()}, arguments.out)
    return 0 if all(report.kept for report in reports.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
