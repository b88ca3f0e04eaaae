"""Serves a run's start folder with vLLM on loopback, the way `rollout=vllm_http` needs it.

python scripts/serve_sampler.py --port 8000 experiment=quickstart
python scripts/train.py experiment=quickstart rollout=vllm_http rollout.url=http://127.0.0.1:8000/v1
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

from apr_train.compose import load
from apr_train.config import Config
from apr_train.model import prepare_model_folder
from rollout.dialects import dialect_class
from rollout.engines.vllm_http import server_command
from rollout.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    arguments, overrides = parser.parse_known_args()
    try:
        command = command_of(load(overrides), arguments.port)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # The development routes load weights; they and the server are for this machine alone.
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_HOST_IP": "127.0.0.1"}
    return subprocess.run([*command, "--host", "127.0.0.1"], env=environment, check=False).returncode


def command_of(config: Config, port: int) -> list[str]:
    """Writes the folder that training would start from, and names the command that serves it."""
    start = Path(config.output_dir) / "start"
    tags = dialect_class(config.dialect.name).tags(config.dialect.options)
    prepare_model_folder(config.model, tags, start, config.seed)
    return server_command(
        start,
        max_context=config.model.max_context,
        dtype=config.model.dtype,
        port=port,
        cpu_kv_cache_gib=None if torch.cuda.is_available() else config.rollout.kv_cache_gib,
    )


if __name__ == "__main__":
    sys.exit(main())
