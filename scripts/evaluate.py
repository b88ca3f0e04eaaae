"""Evaluates a model folder on held-out problems and prints a table; a start after a stop goes on with the next batch.

python scripts/evaluate.py experiment=quickstart name=judged model.path=outputs/mine/rl eval.batch_problems=50
torchrun --nproc-per-node 2 scripts/evaluate.py experiment=quickstart name=judged model.path=outputs/mine/rl

Takes the configuration of scripts/train.py, and trains nothing. Records: outputs/<name>/heldout.jsonl.
"""

from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from apr_train import compose
from apr_train.tasks import make_task

COLUMNS = {
    "accuracy": ".3f",
    "l_critical_mean": ".1f",
    "l_total_mean": ".1f",
    "threads_mean": ".2f",
    "trigger_rate": ".2f",
}


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(composed: DictConfig) -> None:
    with compose.one_line_errors():
        config = compose.to_config(composed)
        from apr_train.evaluation import check, evaluate_model  # takes seconds: not for a typing mistake

        check(config)
        if config.dry_run:
            if compose.rank() == 0:
                make_task(config.data.task, config.data.options)  # finds a wrong option or a missing file
                print(OmegaConf.to_yaml(composed, resolve=True))
            return
    with compose.one_line_errors(every_rank=True, folder=config.output_dir):
        summary = evaluate_model(config)
    if compose.rank() == 0:
        console = Console(width=80, markup=False, highlight=False)
        console.print(table(summary))
        console.print(f"everything: {config.output_dir}/summary.json, heldout.jsonl", soft_wrap=True)


def table(summary: dict[str, Any]) -> Table:
    """All problems and, where they have parts, those of each number of parts; at most 80 columns wide."""
    shown = Table(title=f"{summary['name']}: {summary['model']}", width=80)
    for column in ("", "problems", "accuracy", "L_critical", "L_total", "threads", "trigger"):
        shown.add_column(column, justify="right")
    rows = {"all": summary["heldout"]} | {f"{n} parts": each for n, each in summary["heldout"]["by_parts"].items()}
    for name, each in rows.items():
        own = [format(each[key], form) if each[key] is not None else "-" for key, form in COLUMNS.items()]
        shown.add_row(name, str(each["problems"]), *own)
    all_ = summary["heldout"]
    shown.caption = f"accuracy of all: {all_['accuracy_low']:.3f} to {all_['accuracy_high']:.3f} (95%, Wilson)"
    return shown


if __name__ == "__main__":
    compose.start(main)
