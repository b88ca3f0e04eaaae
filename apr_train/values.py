"""Which values a setting may take whatever the others are: finite numbers, names of folders, addresses."""

import math
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from apr_train.config import Config, ConfigError
from rollout.engines.bearer import VARIABLE, TokenError, is_loopback, token_of

SEEDS = 2**32
"""numpy takes a seed below this."""
_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
"""Slurm's: minutes, minutes:seconds, hours:minutes:seconds, each also after days and a dash."""


def need(ok: bool, message: str) -> None:
    """Raises ConfigError with the message where it is not."""
    if not ok:
        raise ConfigError(message)


def check_values(config: Config) -> None:
    """ConfigError at the first value that can be told to be wrong by itself. Bounds are in `validate`."""
    _check_finite(asdict(config))
    need(config.seed < SEEDS, f"seed={config.seed} must be below 2**32, which numpy's generator takes")
    name = config.name
    need(bool(name) and "/" not in name, f"name={name!r} must be a folder name, without /")
    need(name not in (".", "..") and name.isprintable(), f"name={name!r} must be the name of a folder of its own")
    _check_output_dir(config.output_dir)
    need(bool(_TIME.fullmatch(config.cluster.time)), f"cluster.time={config.cluster.time!r} is no time, e.g. 24:00:00")


def _check_finite(values: dict[str, Any], prefix: str = "") -> None:
    """An infinity passes "above 0" and any lower bound. Terms of a reward are checked where they are built."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in ("reward", "data.options", "dialect.options"):
            _check_finite(value, f"{key}.")
        elif isinstance(value, float):
            need(math.isfinite(value), f"{key}={value} must be a finite number")


def _check_output_dir(output_dir: str) -> None:
    """A folder that is there, or can be one: nothing on the way to it is a file."""
    need(bool(output_dir.strip()), "output_dir is empty: name a folder, e.g. output_dir=outputs/mine")
    folder = Path(output_dir).absolute()
    for part in (folder, *folder.parents):
        free = os.path.isdir(part) or not os.path.exists(part)
        need(free, f"output_dir={output_dir}: {part.name} is a file; name a folder")


def check_url(url: str) -> None:
    """The address of a vLLM server, and that another machine's needs a token. Raises ConfigError."""
    key = f"rollout.urls: {url}"
    need(
        url.startswith(("http://", "https://")),
        f"{key} is no server's address, as http://127.0.0.1:8000/v1 is",
    )
    try:
        parts, token = urlsplit(url), token_of()
        port = parts.port
    except TokenError as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise ConfigError(f"{key} is no address ({error})") from error
    need(bool(parts.hostname) and port != 0, f"{key} names no machine or port, as http://127.0.0.1:8000/v1 does")
    need(not parts.query and not parts.fragment, f"{key} must end with its path, e.g. /v1: drop what ? or # begins")
    need(
        token is not None or is_loopback(parts.hostname),
        f"{key} is another machine: set {VARIABLE} to the token of its server, here and there",
    )
