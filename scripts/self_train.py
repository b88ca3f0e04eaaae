"""Self-training: rounds of sampling, keeping what is right and well-formed, training on it; shows a table of them.

python scripts/self_train.py experiment=quickstart self_train.rounds=2 self_train.samples_per_problem=8
torchrun --nproc-per-node 8 scripts/self_train.py self_train=threadweaver model.path=.. data=jsonl data.options.path=..

Takes the configuration of scripts/train.py, whose GRPO it leaves out. The same command again goes on after a kill.
"""

from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from apr_train import compose
from apr_train.tasks import make_task
from apr_train.validate_sampling import check_trainable

SHOWN = 5
"""Of how many rounds, the last ones, the reasons are shown; summary.json has all."""


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(composed: DictConfig) -> None:
    with compose.one_line_errors():
        config = compose.to_config(composed)
        check_trainable(config)
        from apr_train.self_train import check, describe, self_train  # takes seconds: not for a typing mistake

        if config.dry_run:
            if compose.rank() == 0:
                make_task(config.data.task, config.data.options)  # finds a wrong option or a missing file
                check(config, compose.ranks())
                print(OmegaConf.to_yaml(composed, resolve=True))
                print(describe(config))
            return
    with compose.one_line_errors(every_rank=True, folder=config.output_dir):
        summary = self_train(config)
    if compose.rank() == 0:
        show(summary, config.output_dir)


def show(summary: dict[str, Any], folder: str) -> None:
    """Prints the tables, and where the rest is."""
    console = Console(width=80, markup=False, highlight=False)
    for table in tables(summary):
        console.print(table)
    console.print(f"everything: {folder}/summary.json")


def tables(summary: dict[str, Any]) -> list[Table]:
    """One row a round, and why trajectories were rejected; each at most 80 columns wide."""
    title = f"{summary['name']}: each round trains on what the model before it sampled"
    rounds = Table(title=title, width=80)
    for column in ("round", "sampled", "kept", "share", "kept L", "accuracy", "L_critical", "trigger"):
        rounds.add_column(column, justify="right")
    rounds.caption = "kept L: mean L_critical of the kept; the last three: of the held-out problems"
    for each in summary["rounds"]:
        own = [str(each["sampled"]), str(each["kept"]), f"{each['kept_share']:.2f}"] if "kept" in each else ["-"] * 3
        kept = f"{each['kept_l_critical_mean']:.1f}" if "kept" in each else "-"
        names = (("accuracy", ".3f"), ("l_critical_mean", ".1f"), ("trigger_rate", ".2f"))
        held = [format(each["heldout"][k], form) if each["heldout"].get(k) is not None else "-" for k, form in names]
        rounds.add_row(str(each["round"]), *own, kept, *held)
    sampled = [each for each in summary["rounds"] if "kept" in each]
    reasons = list(dict.fromkeys(reason for each in sampled for reason in each["rejected"]))
    why = Table(title="rejected, by reason", width=80)
    why.add_column("reason", min_width=16, no_wrap=True)
    for each in sampled[-SHOWN:]:
        why.add_column(f"round {each['round']}", justify="right")
    for reason in reasons:
        why.add_row(reason, *(str(each["rejected"].get(reason, 0)) for each in sampled[-SHOWN:]))
    return [rounds, why] if reasons else [rounds]


if __name__ == "__main__":
    compose.start(main)
