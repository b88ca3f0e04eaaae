"""The sbatch command that starts a configuration on a Slurm cluster; shown by a dry run, submitted by hand."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from apr_train.config import Config

ROOT = Path(__file__).resolve().parent.parent


def ranks_of(config: Config, here: int) -> int:
    """How many ranks would train: those of the cluster, or the `here` that this process was started as one of.

    >>> ranks_of(load(["cluster=slurm", "cluster.nodes=2", "dry_run=true"]), here=1)
    16
    """
    cluster = config.cluster
    training = cluster.nodes - cluster.server_nodes
    return training * max(1, cluster.gpus_per_node) if cluster.launcher == "slurm" else here


def script_of(config: Config) -> str:
    """The script that is submitted, from the checkout."""
    if config.cluster.server_nodes:
        return "slurm/serve_sampler.sbatch"
    return "slurm/train.sbatch" if config.algorithm.steps else "slurm/sft.sbatch"


def sbatch_command(config: Config, overrides: Sequence[str]) -> list[str]:
    """What to type in the checkout; `overrides` are the words that this configuration was composed of.

    The job is called as the run is, and so is its folder: where `name` is not given, that of the job is taken.

    >>> config = load(["experiment=quickstart", "cluster=slurm", "dry_run=true"])
    >>> sbatch_command(config, ["experiment=quickstart", "cluster=slurm", "dry_run=true"])[3:]
    ['--gpus-per-node=8', '--time=24:00:00', 'slurm/train.sbatch', 'experiment=quickstart']
    """
    cluster = config.cluster
    given = {
        "job-name": config.name,
        "nodes": cluster.nodes,
        "gpus-per-node": cluster.gpus_per_node or None,
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "export": f"ALL,APR_SERVER_NODES={cluster.server_nodes}" if cluster.server_nodes else None,
    }
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    words = [word for word in overrides if not re.match(r"\+*(dry_run=|cluster[.=])", word)]
    return ["sbatch", *flags, script_of(config), *words]


def shown(config: Config, overrides: Sequence[str]) -> str:
    """The command and the script, for a person who wants to see both before the job waits in a queue."""
    script = script_of(config)
    return f"{shlex.join(sbatch_command(config, overrides))}\n\n{script}:\n\n{(ROOT / script).read_text()}"
