"""Run by torchrun: two GRPO steps over prepared trajectories; the main rank saves the weights they lead to.

torchrun --nproc-per-node 2 tests/two_ranks_update.py STAGE PACKED FILE [JSON]

STAGE: none, 0, 1, 2 or 3; JSON: keys of AlgorithmConfig.
"""

import json
import sys
from pathlib import Path

import torch
from trainers import gradient_norms, make_trainer

from apr_train.config import Config
from apr_train.run import start_world
from apr_train.weight_sync import full_weights


def main() -> None:
    stage, packed, file = sys.argv[1], sys.argv[2] == "packed", Path(sys.argv[3])
    algorithm = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    config = Config()
    config.deepspeed.stage = None if stage == "none" else int(stage)
    world = start_world(config)
    trainer = make_trainer(file.parent, packed=packed, micro_batches=2, stage=config.deepspeed.stage, **algorithm)
    trainer.train()
    weights = {name: tensor.clone() for name, tensor in full_weights(trainer.accelerator.unwrap_model(trainer.model))}
    if world.is_main_process:
        torch.save(weights | {"gradient norms": torch.tensor(gradient_norms(trainer))}, file)


if __name__ == "__main__":
    main()
