"""The numbers of one trajectory, by the names the dashboard shows."""

import math
from collections.abc import Mapping
from typing import get_args

from rewards.reward import Part
from rewards.scored import Scored
from rewards.verdict import Verdict
from rollout.trajectory import Outcome

NAN = math.nan


def trajectory_metrics(scored: Scored) -> dict[str, float]:
    """Same keys for every trajectory; NaN where a figure does not apply. Shares (`stop/`, `verify/`) each sum to 1."""
    lengths, trajectory = scored.lengths, scored.trajectory
    judged = scored.judged
    return {
        "accuracy": float(scored.verdict == "correct") if judged else NAN,
        "tree/l_critical": float(lengths.l_critical),
        "tree/l_total": float(lengths.l_total),
        "tree/eta": lengths.eta,
        "tree/trigger_rate": float(lengths.blocks > 0),
        "tree/parallel_ratio": lengths.parallel_ratio,
        "tree/spawned": float(lengths.threads),
        "tree/threads": lengths.threads / lengths.blocks if lengths.blocks else NAN,
        "tree/strict_format": float(scored.flaw is None),
        "tree/threads_cut": float(trajectory.notes.get("thread/forced close", 0)),
        "tree/threads_ended_by_eos": float(trajectory.notes.get("thread/eos", 0)),
        "tree/forks_without_room": float(trajectory.notes.get("fork/no room", 0)),
        **{f"stop/{name}": float(trajectory.outcome == name) for name in get_args(Outcome)},
        **{f"verify/{name}": float(scored.verdict == name) for name in get_args(Verdict)},
    }


def term_metrics(parts: Mapping[str, Part]) -> dict[str, float]:
    """Per term: its summand, whether its gate was open, and whether the clip bound where it was (NaN elsewhere)."""
    found: dict[str, float] = {}
    for name, part in parts.items():
        found[f"reward/{name}"] = part.value
        found[f"gate/{name}"] = float(part.gate)
        found[f"saturated/{name}"] = float(part.saturated) if part.gate else NAN
    return found
