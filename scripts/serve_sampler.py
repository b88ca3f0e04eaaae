"""Serves a run's start folder with vLLM, on loopback unless told, the way `rollout=vllm_http` needs it.

python scripts/serve_sampler.py --port 8000 experiment=quickstart
python scripts/train.py experiment=quickstart rollout=vllm_http 'rollout.urls=[http://127.0.0.1:8000/v1]'

Several, each started with its port (and its CUDA_VISIBLE_DEVICES), serve as many ranks or more: name all in the list.

A server that dies or hangs is started again. It then has the weights of the start folder, until the trainer, which
notices, sends its own once more.

With VLLM_API_KEY set, on both sides, every route but /health asks for it; a --host that other machines reach needs it.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from apr_train.compose import load
from apr_train.config import Config
from apr_train.model import prepare_model_folder
from apr_train.supervise import Supervisor, health_of
from rollout.dialects import dialect_class
from rollout.engines.vllm_http import server_command
from rollout.errors import UserError
from rollout.shown import one_line


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1", help="what to listen on; other machines need VLLM_API_KEY")
    parser.add_argument("--restarts", type=int, default=5, help="how often at most a dead server is started again")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before that")
    parser.add_argument("--hang-seconds", type=float, default=60.0, help="without an answer, after which it is killed")
    arguments, overrides = parser.parse_known_args()
    try:
        config = load(overrides)
        command = command_of(config, arguments.port, arguments.host)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    # The development routes load weights: `server_command` lets nobody else reach them without the token.
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_HOST_IP": "127.0.0.1"}
    return Supervisor(
        command,
        health_of(arguments.host, arguments.port),
        environment,
        restarts=arguments.restarts,
        pause=arguments.pause,
        start_seconds=config.deadline.engine_start,
        hang_seconds=arguments.hang_seconds,
        say=lambda line: print(f"serve_sampler: {line}", file=sys.stderr, flush=True),
    ).run()


def command_of(config: Config, port: int, host: str) -> list[str]:
    """Writes the folder that training would start from, and names the command that serves it."""
    start = Path(config.output_dir) / "start"
    tags = dialect_class(config.dialect.name).tags(config.dialect.options)
    prepare_model_folder(config.model, tags, start, config.seed)
    return server_command(
        start,
        max_context=config.model.max_context,
        dtype=config.model.dtype,
        port=port,
        host=host,
        cpu_kv_cache_gib=None if torch.cuda.is_available() else config.rollout.kv_cache_gib,
    )


if __name__ == "__main__":
    sys.exit(main())
