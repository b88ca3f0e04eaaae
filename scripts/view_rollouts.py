"""Makes one page of recorded rollouts, to be opened in any browser, or prints them in the terminal.

python scripts/view_rollouts.py outputs/run [--out page.html]            # a run's folder: all ranks, its tokenizer
python scripts/view_rollouts.py rollouts-rank0.jsonl --tokenizer outputs/run/start
python scripts/view_rollouts.py outputs/run --terminal 3                 # the first three trajectories as text

The page needs no network and no other file. Without a tokenizer it shows token ids.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from transformers import AutoTokenizer

from apr_train.stored import check_writable, read_recorded
from rollout.errors import UserError, shortened
from rollout.shown import one_line
from rollout.tokens import Tokens
from rollout.viewer import page, print_trees

WIDTH = 80
"""Columns of the terminal form."""


class ViewError(UserError, ValueError):
    """The command line cannot be followed."""


def main(argv: Sequence[str] | None = None) -> int:
    """0: shown. 2: something the user can mend, told in one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rollouts", nargs="+", type=Path, help="files of rollouts, or folders of runs")
    parser.add_argument("--tokenizer", type=Path, help="a folder with the run's tokenizer; of a run's folder, its own")
    parser.add_argument("--out", type=Path, default=Path("rollouts.html"))
    parser.add_argument("--terminal", nargs="?", const=5, type=int, metavar="N", help="print the first N (5) instead")
    arguments = parser.parse_args(argv)
    try:
        if arguments.terminal is None:
            check_writable(arguments.out)
        elif arguments.terminal < 1:
            raise ViewError(f"--terminal {arguments.terminal}: print one trajectory at least")
        folder = arguments.tokenizer or next(filter(None, map(tokenizer_of, arguments.rollouts)), None)
        tokens = None if folder is None else read_tokenizer(folder)
        recorded = read_recorded([file for each in arguments.rollouts for file in files_of(each)])
        decode = tokens.decode if tokens else None
        if arguments.terminal is not None:
            print_trees(recorded[: arguments.terminal], decode, Console(width=WIDTH, markup=False, highlight=False))
            return 0
        known = len(tokens.tokenizer) if tokens else None
        arguments.out.write_text(page(recorded, decode, vocabulary=known, title=title_of(arguments.rollouts)))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    size = arguments.out.stat().st_size / 1e6
    print(f"{arguments.out}: {len(recorded)} rollouts, {size:.1f} MB" + ("" if tokens else ", token ids for text"))
    return 0


def files_of(given: Path) -> list[Path]:
    """The files of rollouts that an argument means. Raises ViewError for a folder without any."""
    if not given.is_dir():
        return [given]
    if not (found := sorted([*given.glob("rollouts-rank*.jsonl"), *given.glob("rollouts.jsonl")])):
        raise ViewError(
            f"{given} holds no rollouts: train with logger.rollouts_every above 0, or evaluate with eval.record above "
            "0, and name a row's folder"
        )
    return found


def tokenizer_of(given: Path) -> Path | None:
    """The tokenizer of a run's folder, or of the run in whose folder, or row's folder, a file lies."""
    run = (given if given.is_dir() else given.parent).absolute()
    folders = [home / stage for home in (run, run.parent) for stage in ("rl", "sft", "start")]
    return next((folder for folder in folders if (folder / "tokenizer_config.json").is_file()), None)


def read_tokenizer(folder: Path) -> Tokens:
    """Raises ViewError where there is none."""
    if not folder.is_dir():  # a name would be looked for on the hub
        raise ViewError(f"--tokenizer {folder} is no folder: give the run's start/, sft/ or rl/")
    try:
        return Tokens(AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    except Exception as error:  # a tokenizer's files can be broken in as many ways as there are tokenizers
        why = shortened(f"{type(error).__name__}: {error}")
        raise ViewError(f"--tokenizer {folder} cannot be read ({why}): give the run's start/, sft/ or rl/") from error


def title_of(given: Sequence[Path]) -> str:
    """What the page is called: the last names of what it shows."""
    names = [each.absolute().name for each in given]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


if __name__ == "__main__":
    sys.exit(main())
