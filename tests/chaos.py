"""What the chaos tests share: a run with a checkpoint after every step, and the seconds that each disturbance took."""

import json
from collections import defaultdict
from pathlib import Path

from real_runs import MODEL, RL, logged

ROUNDS = 5
MOST_SECONDS = 60.0
SEED = 0
FINE = (*MODEL, *RL, "algorithm.steps=12", "checkpoint.every=1")
TIMES: dict[str, list[float]] = defaultdict(list)


def took(kind: str, seconds: float) -> None:
    """Notes from a disturbance to the next step that is logged, or to the end with a named error."""
    TIMES[kind].append(seconds)
    assert seconds < MOST_SECONDS, f"{kind}: {seconds:.0f} s"


def rl_step(folder: Path) -> int:
    """The last step of RL that is logged."""
    return max((row["step"] for row in logged(folder) if row["stage"] == "rl"), default=0)


def table() -> str:
    """The seconds of each kind, as JSON."""
    return json.dumps(
        {kind: {"times": len(found), "most_seconds": round(max(found), 1)} for kind, found in TIMES.items()}
    )
