"""Evaluates a model folder on held-out problems and prints a table; a start after a stop goes on with the next batch.

python scripts/evaluate.py experiment=quickstart name=judged model.path=outputs/mine/rl eval.batch_problems=50
python scripts/evaluate.py experiment=quickstart name=judged model.path=outputs/mine/rl eval=strategies
python scripts/evaluate.py experiment=quickstart name=voted model.path=outputs/mine/rl strategy=self_consistency
torchrun --nproc-per-node 2 scripts/evaluate.py experiment=quickstart name=judged model.path=outputs/mine/rl

Takes the configuration of scripts/train.py, and trains nothing. Samples: outputs/<name>/<row>/heldout.jsonl.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from apr_train import compose
from apr_train.tasks import make_task

FIGURES = {"l_critical_mean": ".1f", "l_total_mean": ".1f", "trigger_rate": ".2f"}
HEADS = {"l_critical_mean": "L_critical", "l_total_mean": "L_total", "trigger_rate": "forks"}


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(composed: DictConfig) -> None:
    with compose.one_line_errors():
        config = compose.to_config(composed)
        from apr_train.evaluation.evaluate import check, evaluate_model  # takes seconds: not for a typing mistake

        check(config, compose.ranks())
        if config.dry_run:
            if compose.rank() == 0:
                make_task(config.data.task, config.data.options)  # finds a wrong option or a missing file
                print(OmegaConf.to_yaml(composed, resolve=True))
            return
    with compose.one_line_errors(every_rank=True, folder=config.output_dir):
        summary = evaluate_model(config)
    if compose.rank() == 0:
        show(summary, Path(config.output_dir))


def show(summary: dict[str, Any], folder: Path) -> None:
    """The rows side by side, and one row's problems by their parts; at most 80 columns wide."""
    console = Console(width=80, markup=False, highlight=False)
    rows = summary["rows"]
    console.print(table(summary["name"], {name: row["heldout"] for name, row in rows.items()}))
    if len(rows) == 1:
        (only,) = rows.values()
        for split in ("by_parts", "by_source", "by_level"):
            if only["heldout"][split]:
                console.print()
                console.print(table(split.replace("_", " "), only["heldout"][split]))
    else:
        console.print()
        console.print(matched_tokens(folder, rows))
    console.print(f"everything: {folder}/summary.json, <row>/heldout.jsonl", soft_wrap=True)
    console.print(f"as a page:  python scripts/report.py {folder}", soft_wrap=True)


def table(title: str, rows: dict[str, Any]) -> Table:
    """Accuracy with its 95% interval, means of lengths in tokens, trigger rate of each row."""
    shown = _plain(title, "of", "accuracy", "95%", *(HEADS[key] for key in FIGURES))
    for name, each in rows.items():
        interval = f"{each['accuracy_low']:.2f}-{each['accuracy_high']:.2f}"
        own = [_written(each[key], form) for key, form in FIGURES.items()]
        shown.add_row(name, str(each["samples"]), _written(each["accuracy"], ".3f"), interval, *own)
    return shown


def matched_tokens(folder: Path, names: Iterable[str]) -> Table:
    """Each row's accuracy at the tokens of the dearest row, and within the critical path of the first one."""
    from apr_train.evaluation.matched import matched
    from apr_train.evaluation.samples import HELDOUT, read_samples

    found = matched({name: read_samples(folder / name / HELDOUT) for name in names})
    title = f"accuracy within {found.total:.0f} tokens, and within a critical path of {found.critical:.0f}"
    shown = _plain(title, "tokens", "95%", "critical", "95%")
    for name, row in found.rows.items():
        cells: list[str] = []
        for axis in ("total", "critical"):
            each = row[axis]
            cells += [_written(each["accuracy"], ".3f"), f"{each['low']:.2f}-{each['high']:.2f}"]
        shown.add_row(name, *cells)
    return shown


def _plain(title: str, *columns: str) -> Table:
    shown = Table(
        title=title, title_justify="left", min_width=76, box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0)
    )
    for column in ("", *columns):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    return shown


def _written(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    compose.start(main)
