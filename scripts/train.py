"""The one entry point: composes and checks a configuration, then shows it (`dry_run=true`) or trains it.

python scripts/train.py experiment=quickstart reward.terms.acceleration.rho=0.3
torchrun --nproc-per-node 2 scripts/train.py experiment=quickstart deepspeed=zero3
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from omegaconf import DictConfig, OmegaConf

from apr_train import compose
from apr_train.config import Config
from apr_train.plan import plan
from apr_train.tasks import make_task
from rollout.errors import UserError

RANK = int(os.environ.get("RANK", "0"))


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(composed: DictConfig) -> None:
    with one_line_errors():
        config = compose.to_config(composed)
        if not config.dry_run:
            train(config)
        elif RANK == 0:
            make_task(config.data.task, config.data.options)  # finds a wrong option or a missing file
            print(OmegaConf.to_yaml(composed, resolve=True))
            print(plan(config, compose.ranks()))


def train(config: Config) -> None:
    """Runs it; says which rank found what a user can mend."""
    from apr_train.run import run  # torch, transformers and vLLM take seconds to import: not for a typing mistake

    try:
        run(config)
    except UserError as error:
        raise UserError(f"rank {RANK}: {error}" if compose.ranks() > 1 else str(error)) from error


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can mend is one line on stderr and exit code 2; everything else keeps its traceback."""
    try:
        with compose.translated_errors(sys.argv[1:]):
            yield
    except UserError as error:
        line = " ".join(str(error).split())
        if RANK == 0 or line.startswith("rank "):  # a wrong configuration is found by every rank, and told once
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would otherwise catch exceptions, shorten them and exit with 1
    compose.register()
    sys.argv[1:] = compose.opened(sys.argv[1:])
    with one_line_errors():
        main()
