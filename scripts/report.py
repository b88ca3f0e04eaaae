"""One page of any number of evaluations and training runs: tables, curves, failures, comparisons, setup.

python scripts/report.py outputs/judged
python scripts/report.py outputs/quickstart/ours outputs/quickstart/sequential_baseline --out outputs/quickstart/report
python scripts/report.py outputs/judged --baseline no_forks --compare parallel self_consistency_8

Writes report.html, which needs nothing but itself, the pictures as PNG, and all numbers as report.json. Without --out
they go into the folder `report` of the first run. The last line printed is JSON with the paths.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr_train.checkpoint import replace_text
from rollout.errors import UserError
from rollout.shown import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """0: written. 2: something the user can mend, told in one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of evaluate.py or train.py")
    parser.add_argument("--out", type=Path, help="folder to write to (default: RUN/report of the first RUN)")
    parser.add_argument("--baseline", help="row that speed-ups and comparisons are against")
    parser.add_argument("--compare", nargs=2, action="append", metavar=("A", "B"), default=[])
    arguments = parser.parse_args(argv)
    words = list(sys.argv[1:] if argv is None else argv)
    out: Path = arguments.out or arguments.runs[0] / "report"
    try:
        written = write(arguments.runs, out, arguments.baseline, [(a, b) for a, b in arguments.compare], words)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(json.dumps(written))
    return 0


def write(
    folders: Sequence[Path],
    out: Path,
    baseline: str | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    words: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes page, pictures and numbers into `out`; returns their paths. Raises ReportError and SamplesError."""
    from apr_train.report.charts import draw  # matplotlib takes a second: not for a typing mistake
    from apr_train.report.figures import build
    from apr_train.report.folders import ReportError, read_runs
    from apr_train.report.page import page

    report = build(read_runs(folders), baseline, pairs)
    report["command"] = one_line(shlex.join(["python", "scripts/report.py", *words]))
    pictures = draw(report)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, png in pictures.items():
            (out / f"{name}.png").write_bytes(png)
        replace_text(out / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
        replace_text(out / "report.html", page(report, pictures))
    except OSError as error:
        raise ReportError(f"{out} cannot be written ({error.strerror}): name another folder with --out") from error
    paths = {name: str(out / f"{name}.png") for name in pictures}
    return {"page": str(out / "report.html"), "numbers": str(out / "report.json"), "pictures": paths}


if __name__ == "__main__":
    sys.exit(main())
