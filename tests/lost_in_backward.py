"""One of two ranks, of which the second is killed in its backward pass: `lost_in_backward.py FOLDER STAGE`.

The second of two GRPO steps over prepared trajectories, after the first one is saved; no rank starts an engine.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from trainers import TOKENS, make_trainer

from apr_train import compose
from apr_train.checkpoint import Checkpoints
from apr_train.config import Config
from apr_train.grpo_trainer import ForkJoinGRPOTrainer
from apr_train.lifecycle import StopFlag
from apr_train.run import start_world
from apr_train.saving import Saver


def die_in_backward(trainer: ForkJoinGRPOTrainer) -> None:
    """When the gradient of some parameter in the middle of the model is there."""
    parameters = list(trainer.policy().parameters())

    def die(parameter: Any) -> None:
        if trainer.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    parameters[len(parameters) // 2].register_post_accumulate_grad_hook(die)


def main() -> None:
    folder, stage = Path(sys.argv[1]), sys.argv[2]
    config = Config()
    config.deepspeed.stage = None if stage == "none" else int(stage)
    with compose.one_line_errors(every_rank=True, folder=str(folder)):
        start_world(config)
        trainer = make_trainer(folder / "trainer", packed=True, stage=config.deepspeed.stage)
        trainer.args.save_strategy, trainer.args.save_steps = "steps", 1
        trainer.attach(Saver(Checkpoints(folder / "rl"), TOKENS.tokenizer, StopFlag()))
        if compose.rank() == 1:
            die_in_backward(trainer)
        trainer.resume_training()


if __name__ == "__main__":
    main()
