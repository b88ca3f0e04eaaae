"""scripts/train.py that interrupts itself: INTERRUPT=<point>:<step of rl> in the environment says where.

mid-rollout     told to stop (SIGUSR1) while the rollouts of the step are sampled
mid-update      SIGKILL after the backward pass of the step, before the optimizer
mid-save        SIGKILL in the save after the step, when all but the last rename is done
term-in-save    told to stop (SIGTERM) in the save after the step, when all but the last rename is done
between-epochs  told to stop at the end of the step, which ends an epoch
"""

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from apr_train import saving  # noqa: E402
from apr_train.grpo_trainer import ForkJoinGRPOTrainer  # noqa: E402
from apr_train.rollouts import Rollouts  # noqa: E402

POINT, _, STEP = os.environ.get("INTERRUPT", "never:0").partition(":")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def interrupt(step: int) -> None:
    """Arms the one point; `step` counts from 1."""
    if POINT == "mid-rollout":
        collect, calls = Rollouts.collect, [0]

        def collected(self: Any, *args: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == step:
                stop()
            return collect(self, *args, **options)

        Rollouts.collect = collected
    elif POINT == "mid-update":
        training_step = ForkJoinGRPOTrainer.training_step

        def trained(self: Any, *args: Any, **options: Any) -> Any:
            result = training_step(self, *args, **options)
            if self.state.global_step == step - 1:
                die()
            return result

        ForkJoinGRPOTrainer.training_step = trained
    elif POINT in ("mid-save", "term-in-save"):
        rename = Path.rename

        def renamed(self: Path, target: Any) -> Any:
            if Path(target).name == f"step_{step}" and POINT == "mid-save":
                die()
            elif Path(target).name == f"step_{step}":
                os.kill(os.getpid(), signal.SIGTERM)
                print(f"told to stop in the save of step {step}", flush=True)
            return rename(self, target)

        Path.rename = renamed
    elif POINT == "between-epochs":
        on_step_end = saving._StopCallback.on_step_end

        def ended(self: Any, args: Any, state: Any, *rest: Any, **options: Any) -> None:
            if state.global_step == step and isinstance(self.trainer, ForkJoinGRPOTrainer):
                stop()
            on_step_end(self, args, state, *rest, **options)

        saving._StopCallback.on_step_end = ended


if __name__ == "__main__":
    interrupt(int(STEP))
    runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
