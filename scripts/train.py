"""The one entry point: composes and checks a configuration, then shows it (`dry_run=true`) or trains it.

python scripts/train.py experiment=quickstart reward.terms.acceleration.rho=0.3
torchrun --nproc-per-node 2 scripts/train.py experiment=quickstart deepspeed=zero3
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from apr_train import cluster, compose
from apr_train.plan import plan
from apr_train.tasks import make_task
from apr_train.validate_sampling import check_trainable


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(composed: DictConfig) -> None:
    with compose.one_line_errors():
        config = compose.to_config(composed)
        check_trainable(config)
        if config.dry_run:
            if compose.rank() == 0:
                make_task(config.data.task, config.data.options)  # finds a wrong option or a missing file
                print(OmegaConf.to_yaml(composed, resolve=True))
                print(plan(config, cluster.ranks_of(config, compose.ranks())))
                if config.cluster.launcher == "slurm":
                    print(f"\n{cluster.shown(config, HydraConfig.get().overrides.task)}")
            return
    from apr_train.run import run  # torch, transformers and vLLM take seconds to import: not for a typing mistake

    with compose.one_line_errors(every_rank=True, folder=config.output_dir):
        run(config)


if __name__ == "__main__":
    compose.start(main)
