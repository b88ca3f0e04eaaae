"""scripts/train.py of which one rank waits at one point until a test lets it go on: HOLD=<point>:<step>:<rank>:<file>.

rollout  before the rollouts of the step
update   before the forward pass of the step's first micro-batch

The rank makes the file `<file>` when it is there, and goes on when `<file>.go` exists.
"""

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from apr_train.grpo_trainer import ForkJoinGRPOTrainer  # noqa: E402


def hold(point: str, step: int, file: Path) -> None:
    """Arms the one point; `step` counts from 1."""
    name = {"rollout": "_sample", "update": "_pass"}[point]
    act = getattr(ForkJoinGRPOTrainer, name)

    def held(self: Any, *args: Any, **options: Any) -> Any:
        if self.state.global_step == step - 1 and not file.exists():
            file.write_text(str(os.getpid()))
            while not file.with_name(f"{file.name}.go").exists():
                time.sleep(0.02)
        return act(self, *args, **options)

    setattr(ForkJoinGRPOTrainer, name, held)


if __name__ == "__main__":
    if asked := os.environ.get("HOLD"):
        point, step, rank, file = asked.split(":", 3)
        if os.environ["RANK"] == rank:
            hold(point, int(step), Path(file))
    runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
