"""Makes the W&B workspace of a project: the metrics of docs/metrics.md, section by section.

python scripts/make_dashboard.py --dry-run                  # no account, no network: says what it would make
python scripts/make_dashboard.py --entity me                # needs `wandb login`
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr_train.checkpoint import write_json
from apr_train.config import LoggerConfig
from apr_train.logger_dashboard import DashboardError, definition, save, workspace
from apr_train.vocabulary import SECTIONS
from rollout.errors import UserError
from rollout.shown import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """0: made, or shown. 2: something the user can mend, told in one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--project", default=LoggerConfig().project, help="as logger.project (default: %(default)s)")
    parser.add_argument("--entity", default="", help="your user name or team on W&B")
    parser.add_argument("--name", default="adaptive parallel reasoning", help="of the workspace")
    parser.add_argument("--dry-run", action="store_true", help="write the definition to --out and say what it holds")
    parser.add_argument("--out", type=Path, default=Path("outputs/dashboard.json"), help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    made = workspace(arguments.project, arguments.entity, arguments.name)
    try:
        if arguments.dry_run:
            show(definition(made), arguments.out)
        elif not arguments.entity:
            raise DashboardError("whose project? Name your user or team on W&B with --entity, or take --dry-run")
        else:
            print(f"made {one_line(save(made))}")
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def show(found: dict[str, Any], out: Path) -> None:
    """Writes the definition, and prints each section with its panels."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, found)
    except OSError as error:
        raise DashboardError(f"--out {out} cannot be written: {error.strerror}") from error
    sections = found["spec"]["section"]["panelBankConfig"]["sections"]
    for section in sections:
        print(f"{section['name']}: {SECTIONS[section['name']]}")
        for panel in section["panels"]:
            config = panel["config"]
            metrics = ", ".join(config.get("metrics") or [config["metricRegex"]])
            print(f"  {config['chartTitle']}" + (f": {metrics}" if metrics != config["chartTitle"] else ""))
    count = sum(len(section["panels"]) for section in sections)
    print(f"would make a workspace of {len(sections)} sections and {count} panels; its definition: {out}")


if __name__ == "__main__":
    sys.exit(main())
