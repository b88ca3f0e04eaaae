"""From the command line to a checked Config: Hydra's composition with one-line errors that name the nearest key."""

import atexit
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from apr_train.checkpoint import disk_named
from apr_train.cluster import ranks_of
from apr_train.config import Config, ConfigError
from apr_train.deadlines import kill_children
from apr_train.lifecycle import REQUEUE, Stopped
from apr_train.lost_rank import RankLost, lost_contact, rank_lost
from apr_train.validate import check_model_folder, validate
from rollout.errors import UserError, nearest
from rollout.shown import one_line

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TRUNCATION = ("top_p", "top_k", "min_p", "typical_p")
KINDS = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false", "String": "text"}


def register() -> None:
    """Makes the dataclasses of `apr_train.config` the schema that every YAML and every override is merged into."""
    ConfigStore.instance().store("schema", Config)


def start(main: Callable[[], None]) -> None:
    """Runs the main function of a script under `hydra.main`, with this process's command line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would otherwise catch exceptions, shorten them and exit with 1
    register()
    sys.argv[1:] = opened(sys.argv[1:])
    with one_line_errors():
        main()
    if ranks() > 1:
        _end()


def _end() -> None:
    """Ends a rank that has done all it had to, at once: at the interpreter's own end a thread that torch has left may
    abort the process (now and then, on a busy machine), and torchrun would call a finished run a failed one."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def one_line_errors(*, every_rank: bool = False, folder: str | None = None) -> Iterator[None]:
    """What a user can mend is one line on stderr and exit code 2; everything else keeps its traceback.

    A run that was told to stop exits with REQUEUE. A wrong configuration is found by every rank, and told once; with
    `every_rank` each tells what it found. `folder` keeps the traceback of a rank that lost contact to another one.
    """
    try:
        with translated_errors(sys.argv[1:]), disk_named():
            yield
    except Stopped as stop:
        if rank() == 0:
            anew = " without resume=never" if "resume=never" in sys.argv else ""
            print(f"stopped ({one_line(stop)}), and saved: the same command{anew} goes on", file=sys.stderr)
        sys.exit(REQUEUE)
    except RankLost as error:
        _leave(error, folder)
    except UserError as error:
        which = f"rank {rank()}: " if every_rank and ranks() > 1 else ""
        if which or rank() == 0:
            print(f"error: {which}{one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if not lost_contact(error):
            raise
        lost = rank_lost(error)
        lost.__cause__ = error
        _leave(lost, folder)


def _leave(error: RankLost, folder: str | None) -> NoReturn:
    """One line on stderr, what torch said in a file of the folder (below the line where there is none), and the end:
    at the interpreter's own one, threads of torch wait for the lost rank, or abort the process."""
    told = "".join(traceback.format_exception(error.__cause__ or error))
    where = f"torch's traceback:\n{told}"
    if folder is not None:
        file = Path(folder) / f"error-rank{rank()}.log"
        with suppress(OSError):  # then it is printed
            file.write_text(told)
            where = f"torch's traceback: {file}"
    print(f"error: rank {rank()}: {one_line(error)}; {where}", file=sys.stderr, flush=True)
    kill_children()
    os._exit(2)


def load(overrides: Sequence[str]) -> Config:
    """Composes `configs/config.yaml` with overrides, for tests and scripts. Raises ConfigError.

    >>> load(["experiment=quickstart", "rollout.max_threads=4"]).rollout.max_threads
    4
    """
    with translated_errors(overrides):
        return to_config(_compose(overrides))


def to_config(composed: DictConfig) -> Config:
    """The typed, checked configuration of this process (WORLD_SIZE ranks). Raises ConfigError."""
    for key in _unknown_keys(composed, Config):
        raise ConfigError(_unknown(key, OmegaConf.structured(Config)))
    for key in sorted(OmegaConf.missing_keys(composed)):
        raise ConfigError(f"{key} has no value; add {key}=... to the command line")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    validate(config, ranks_of(config, ranks()))
    check_model_folder(config.model)
    return config


def ranks() -> int:
    """How many processes train together; torchrun and srun say so in WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this process is, from 0."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def translated_errors(overrides: Sequence[str]) -> Iterator[None]:
    """Turns what Hydra and OmegaConf raise on a wrong command line or YAML into a ConfigError of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, overrides)) from error
    except ValueError as error:
        if not str(error).startswith("Config group override must be"):  # a ValueError, where other mistakes are Hydra's
            raise
        raise ConfigError(_no_option(overrides)) from error


def opened(overrides: Sequence[str]) -> list[str]:
    """Lets an override name a setting that a preset leaves at its default; building the term checks it.

    >>> opened(["reward=outcome", "reward.terms.outcome.weight=2"])
    ['reward=outcome', '++reward.terms.outcome.weight=2']
    """
    return [f"++{override}" if override.startswith("reward.terms.") else override for override in overrides]


def _compose(overrides: Sequence[str]) -> DictConfig:
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", opened(overrides))


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """One line for one exception. Hydra wraps OmegaConf's, whose text ends in a line `full_key: a.b`."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(error, overrides)
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}; write key=value, and quote what the shell would change"
    if found := re.match(r"Ambiguous value for argument '(.*)'", str(error)):
        key, _, value = found[1].partition("=")
        return f"{key}={value}: write {key}=[{value}] for a list, {key}='{value}' for text, or add --multirun for runs"
    text = "\n".join(str(e) for e in (error, error.__cause__) if e is not None)
    key = re.search(r"full_key: (\S+)", text)
    if key is None:
        return " ".join(line.strip() for line in str(error).splitlines() if "https://" not in line)
    if re.search(r"Key '.*' (is )?not in", text):
        return _unknown(key[1], _without_values(overrides))
    if found := re.search(r"Value '(.*)' of type '.*' could not be converted to (\w+)", text):
        return f"{key[1]}={found[1]}: it takes {KINDS.get(found[2], found[2])}"
    if found := re.search(r"Value '(.*)' is not a valid bool", text):
        return f"{key[1]}={found[1]}: it takes true or false"
    if re.search(r"Cannot assign \w+ to Dict", text):
        return f"{key[1]} takes settings by name, e.g. {key[1]}.name=value, and no value of its own"
    if "is not Optional" in text:
        return f"{key[1]}=null: it needs a value"
    return f"{key[1]}: {str(error.__cause__ or error).splitlines()[0]}"


def _no_option(overrides: Sequence[str]) -> str:
    """Of the first override whose value is no name of an option: a number, null, or nothing before its `=`."""
    for override in overrides:
        group, _, option = override.lstrip("+").partition("=")
        folder = CONFIGS / group
        if group and folder.is_dir() and (option in ("", "null") or not option.isidentifier()):
            return f"{override}: name an option ({', '.join(sorted(file.stem for file in folder.glob('*.yaml')))})"
    odd = next((override for override in overrides if override.lstrip("+").startswith("=")), " ".join(overrides))
    return f"cannot read {odd!r}; write key=value, and quote what the shell would change"


def _unknown_option(error: MissingConfigException, overrides: Sequence[str]) -> str:
    missing = str(error.missing_cfg_file)
    group, _, option = missing.rpartition("/")
    for override in overrides:  # an option that is a path itself
        key, equals, value = override.lstrip("+").partition("=")
        group, option = (key, value) if equals and f"{key}/{value}" == missing else (group, option)
    options = list(error.options or [])
    near = nearest(option, options)
    hint = f"did you mean {group}={near}? " if near else ""
    return f"unknown option {group}={option}: {hint}(known: {', '.join(options)})"


def _unknown(key: str, known: DictConfig) -> str:
    """`reward.rh0` -> "unknown key reward.rh0; did you mean reward.rho?"."""
    parent, _, name = key.rpartition(".")
    if name in TRUNCATION:
        return (
            f"{key} does not exist on purpose: truncated sampling biases the importance ratio; "
            "the whole distribution is sampled, and only rollout.temperature shapes it"
        )
    if key == "model.lora.dropout":
        return f"{key} does not exist on purpose: the trainer would score another policy than the one that is sampled"
    keys = list(_keys(known))
    if parent == "":
        keys += [folder.name for folder in CONFIGS.iterdir() if folder.is_dir()]
    siblings = list(dict.fromkeys(k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent))
    if near := nearest(name, siblings):
        return f"unknown key {key}; did you mean {parent}{'.' * bool(parent)}{near}?"
    if namesakes := [k for k in keys if k.rpartition(".")[2] == name]:
        return f"unknown key {key}; did you mean {namesakes[0]}?"
    return f"unknown key {key}" + (f"; {parent or 'the top level'} has {', '.join(siblings)}" if siblings else "")


def _without_values(overrides: Sequence[str]) -> DictConfig:
    """The configuration of the chosen group options alone: what keys there are to be near to."""
    groups = [o for o in overrides if re.fullmatch(r"[\w/]+=[\w.-]+", o) and (CONFIGS / o.partition("=")[0]).is_dir()]
    try:
        return _compose(groups)
    except (HydraException, OmegaConfBaseException):  # a YAML file itself holds the unknown key
        return OmegaConf.structured(Config)


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in node:
        yield f"{prefix}{key}"
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, str(key)):
            continue
        child = node[key]
        if isinstance(child, DictConfig):
            yield from _keys(child, f"{prefix}{key}.")


def _unknown_keys(node: DictConfig, schema: Any, prefix: str = "") -> Iterator[str]:
    """Keys that `+key=value` added to a dataclass that has no such field."""
    known = {field.name: field.type for field in fields(schema)}
    for key in map(str, node):
        if key not in known:
            yield f"{prefix}{key}"
        elif is_dataclass(known[key]):
            yield from _unknown_keys(node[key], known[key], f"{prefix}{key}.")
