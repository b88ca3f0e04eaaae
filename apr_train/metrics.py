"""The numbers of trajectories, groups and evaluations, by the names of the vocabulary."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from torch import Tensor

from apr_train.vocabulary import METRICS
from rewards.reward import Part
from rewards.scored import Scored
from rewards.verdict import Verdict
from rollout.trajectory import Outcome

NAN = math.nan


def trajectory_metrics(scored: Scored) -> dict[str, float]:
    """Same keys for every trajectory; NaN where a figure does not apply. Shares (`stop/`, `verify/`) each sum to 1."""
    lengths, trajectory = scored.lengths, scored.trajectory
    judged, verdicts = scored.judged, scored.thread_verdicts.values()
    return {
        "reward/accuracy": float(scored.verdict == "correct") if judged else NAN,
        "tree/l_critical": float(lengths.l_critical),
        "tree/l_total": float(lengths.l_total),
        "tree/eta": lengths.eta,
        "tree/trigger_rate": float(lengths.blocks > 0),
        "tree/parallel_ratio": lengths.parallel_ratio,
        "tree/blocks": float(lengths.blocks),
        "tree/spawned": float(lengths.threads),
        "tree/threads": lengths.threads / lengths.blocks if lengths.blocks else NAN,
        "tree/depth": float(lengths.depth),
        "tree/strict_format": float(scored.flaw is None),
        "tree/threads_cut": float(trajectory.notes.get("thread/forced close", 0)),
        "tree/threads_ended_by_eos": float(trajectory.notes.get("thread/eos", 0)),
        "tree/threads_right": sum(verdicts) / len(verdicts) if verdicts else NAN,
        "tree/forks_without_room": float(trajectory.notes.get("fork/no room", 0)),
        **{f"stop/{name}": float(trajectory.outcome == name) for name in get_args(Outcome)},
        **{f"verify/{name}": float(scored.verdict == name) for name in get_args(Verdict)},
    }


def term_metrics(parts: Mapping[str, Part]) -> dict[str, float]:
    """Per term: its summand, whether its gate was open, and whether the clip bound where it was (NaN elsewhere)."""
    found: dict[str, float] = {}
    for name, part in parts.items():
        found[f"reward/term/{name}"] = part.value
        found[f"reward/gate/{name}"] = float(part.gate)
        found[f"reward/saturated/{name}"] = float(part.saturated) if part.gate else NAN
    return found


def step_metrics(names: Sequence[str], table: Tensor, group_size: int) -> dict[str, float]:
    """Of one step's trajectories on all ranks: the mean of each column without its NaNs, and figures of groups.

    `table`: (trajectories, names) of `trajectory_metrics`, `term_metrics`, "reward/total" and "advantage/mean_abs";
    groups are adjacent.
    """

    def groups_PG(name: str) -> Tensor:
        return table[:, names.index(name)].view(-1, group_size)

    advantages_PG, correct_PG = groups_PG("advantage/mean_abs"), groups_PG("verify/correct")
    return dict(zip(names, table.nanmean(0).tolist(), strict=True)) | {
        "tree/l_critical_max": groups_PG("tree/l_critical").max().item(),
        "tree/l_total_max": groups_PG("tree/l_total").max().item(),
        "group/without_signal": (advantages_PG.amax(1) == 0).float().mean().item(),
        "group/all_correct": correct_PG.amin(1).mean().item(),
        "group/none_correct": 1.0 - correct_PG.amax(1).mean().item(),
        "group/reward_std": group_std(groups_PG("reward/total")),
        "advantage/max_abs": advantages_PG.max().item(),
    }


def group_std(rewards_PG: Tensor) -> float:
    """Mean over groups of the standard deviation inside a group, NaNs left out; NaN where nothing was judged.

    >>> group_std(torch.tensor([[0.0, 2.0], [1.0, 1.0]]))  # (1 + 0) / 2
    0.5
    """
    apart_PG = rewards_PG - rewards_PG.nanmean(1, keepdim=True)
    return apart_PG.square().nanmean(1).sqrt().nanmean().item()


def heldout_metrics(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of what `evaluation.metrics.summarise` found, what the vocabulary has under `eval/`."""
    names = [metric.name for metric in METRICS if metric.name.startswith("eval/")] if summary else []
    figures = {name: name.removeprefix("eval/") for name in names}
    return {name: summary[key] if key in summary else summary[f"{key}_mean"] for name, key in figures.items()}
