"""One run from start to end: model folder, SFT, RL, held-out evaluation, summary."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback

from apr_train.arguments import grpo_arguments
from apr_train.config import Config
from apr_train.evaluate import Record, evaluate, summarise, write_records
from apr_train.grpo_trainer import ForkJoinGRPOTrainer
from apr_train.guard import GapGate
from apr_train.logger import LogCallback, MetricsLog, quiet_libraries
from apr_train.model import ModelError, prepare_model_folder
from apr_train.rollouts import Rollouts, budget_of
from apr_train.sft import demonstration_rows, train_sft
from apr_train.tasks import make_task
from apr_train.tasks.base import Problem, Task
from apr_train.weight_sync import save_model, saved_weights
from rewards.acceleration import acceleration
from rewards.reward import Outcome, Reward, Scored, WhenCorrect
from rollout.dialects import dialect_class, make_dialect
from rollout.tokens import Tokens


@dataclass(frozen=True)
class Parts:
    """Everything a stage needs, made once."""

    config: Config
    folder: Path
    world: PartialState
    task: Task
    tokens: Tokens
    rollouts: Rollouts
    log: MetricsLog
    heldout: list[Problem]


def run(config: Config) -> dict[str, Any]:
    """Runs all stages and returns what `summary.json` holds. Errors of users carry names: ModelError, TaskError, ..."""
    started = time.perf_counter()
    quiet_libraries()
    world, folder = start_world(config), Path(config.output_dir)
    log = MetricsLog(config, folder, world.is_main_process)
    try:
        with _parts(config, world, folder, log) as parts:
            summary: dict[str, Any] = {"name": config.name, "seed": config.seed, "ranks": world.num_processes}
            start = folder / "start"
            if config.sft.steps:
                _sft(parts, start)
                start = folder / "sft"
                summary["sft"] = _evaluate(parts, start)
            if config.algorithm.steps:
                summary["gap_logprob_mean_abs"] = _rl(parts, start)
                summary["rl"] = _evaluate(parts, folder / "rl")
            summary["wall_seconds"] = round(time.perf_counter() - started, 1)
            if world.is_main_process:
                (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
            return summary
    finally:
        log.close()


def start_world(config: Config) -> PartialState:
    """Joins the ranks of torchrun (or makes a world of one), before DeepSpeed would, and before any model is made."""
    on_cpu = not torch.cuda.is_available()
    if config.deepspeed.stage is not None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu" if on_cpu else "cuda")
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("MASTER_PORT", "0" if os.environ["WORLD_SIZE"] == "1" else "29500")
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo" if on_cpu else "nccl")
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo" if on_cpu else "nccl")
    return PartialState(cpu=on_cpu)


@contextmanager
def _parts(config: Config, world: PartialState, folder: Path, log: MetricsLog) -> Iterator[Parts]:
    task = make_task(config.data.task, config.data.options)
    heldout = task.problems("heldout", max(config.eval.problems, 1), config.data.seed)[: config.eval.problems]
    with world.main_process_first():
        if world.is_main_process:
            prepare_model_folder(config.model, dialect_class(config.dialect.name).tags, folder / "start", config.seed)
    tokens = Tokens(AutoTokenizer.from_pretrained(folder / "start"))
    dialect = make_dialect(config.dialect.name, tokens)
    _check_prompts(tokens, heldout, config)
    log.say(f"{config.name}: starting the sampler")
    sampler = _sampler(config, folder / "start")
    try:
        rollouts = Rollouts(sampler, dialect, tokens, task.verifier, budget_of(config.rollout))
        yield Parts(config, folder, world, task, tokens, rollouts, log, heldout)
    finally:
        sampler.close()


def _sampler(config: Config, model: Path) -> Any:
    """The engine named by the configuration. Imported here: a dry run and the tests of other rooms need no vLLM."""
    rollout = config.rollout
    if rollout.engine == "vllm_http":
        from rollout.engines.vllm_http import VllmHttpEngine

        return VllmHttpEngine(str(rollout.url), max_context=config.model.max_context, weights_folder=model.parent)
    from rollout.engines.vllm_inprocess import VllmEngine

    return VllmEngine(
        model,
        dtype=config.model.dtype,
        max_context=config.model.max_context,
        max_in_flight=rollout.max_in_flight,
        kv_cache_gib=rollout.kv_cache_gib,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        seed=config.seed,
    )


def _check_prompts(tokens: Tokens, problems: Sequence[Problem], config: Config) -> None:
    room = config.model.max_context - 2 * config.rollout.answer_tokens
    for problem in problems:
        if (length := len(tokens.prompt(problem.prompt))) > room:
            raise ModelError(
                f"problem {problem.id} has {length} prompt tokens; model.max_context={config.model.max_context} leaves "
                f"room for {room}: raise it, or drop the problem"
            )


def _load(parts: Parts, folder: Path) -> PreTrainedModel:
    config = parts.config.model
    attention = "tree" if config.attention == "tree" else "sdpa"
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, config.dtype), attn_implementation=attention
    )


def _sft(parts: Parts, start: Path) -> None:
    config, rollouts = parts.config, parts.rollouts
    problems = parts.task.problems("train", config.data.train_problems, config.data.seed)
    _check_prompts(parts.tokens, problems, config)
    dataset = demonstration_rows(
        parts.task,
        problems,
        rollouts.dialect,
        parts.tokens,
        rollouts.budget,
        config.model.max_context,
        parallel_share=config.sft.parallel_share,
        seed=config.seed,
    )
    callbacks: list[TrainerCallback] = [LogCallback(parts.log, "sft")]
    train_sft(
        config,
        lambda: _load(parts, start),
        parts.tokens.tokenizer,
        dataset,
        parts.folder / "sft",
        parts.world,
        callbacks,
    )
    AcceleratorState._reset_state()  # the next trainer brings its own DeepSpeed plugin
    parts.world.wait_for_everyone()


def _rl(parts: Parts, start: Path) -> float:
    """Runs GRPO from `start`, writes `rl/`; returns the mean gap between sampler and trainer over all steps."""
    config = parts.config
    problems = parts.task.problems("train", config.data.train_problems, config.data.seed + 1)
    gate = GapGate(config.algorithm.gap_warn, config.algorithm.gap_stop)
    args = grpo_arguments(config, parts.folder / "rl" / "trainer", parts.world.num_processes)
    trainer = ForkJoinGRPOTrainer(
        _load(parts, start),
        args,
        parts.tokens.tokenizer,
        problems,
        rollouts=parts.rollouts,
        reward=make_reward(config),
        gate=gate,
        packed=config.model.attention == "tree",
        on_rollouts=_rollout_writer(parts),
        callbacks=[LogCallback(parts.log, "rl")],
    )
    trainer.train()
    save_model(trainer.policy(), parts.tokens.tokenizer, parts.folder / "rl", parts.world.is_main_process)
    parts.world.wait_for_everyone()
    return gate.mean


def make_reward(config: Config) -> Reward:
    """The configured reward: outcome, and the acceleration bonus behind the gate of a correct answer."""
    reward = config.reward
    terms: dict[str, Any] = {"outcome": Outcome(reward.correct_reward, reward.wrong_reward)}
    if reward.rho:
        terms["acceleration"] = WhenCorrect(acceleration(reward.form, reward.rho, reward.cap))
    return Reward(terms)


def _rollout_writer(parts: Parts) -> Any:
    """Appends every n-th step's trajectories of this rank to rollouts-rank<r>.jsonl."""
    every = parts.config.logger.rollouts_every
    path = parts.folder / f"rollouts-rank{parts.world.process_index}.jsonl"
    path.unlink(missing_ok=True)

    def write(step: int, scored: list[Scored], rewards: list[float], advantages: list[float]) -> None:
        if not every or step % every:
            return
        with path.open("a") as file:
            for each, reward, advantage in zip(scored, rewards, advantages, strict=True):
                head = {
                    "step": step,
                    "reward": reward,
                    "advantage": advantage,
                    "verdict": each.verdict,
                    "flaw": each.flaw,
                }
                file.write(json.dumps({**head, "trajectory": json.loads(each.trajectory.to_json())}) + "\n")

    return write


def _evaluate(parts: Parts, folder: Path) -> dict[str, Any]:
    """Samples the held-out problems with the weights in `folder`, each rank its share; writes records."""
    if not parts.heldout:
        return {}
    parts.rollouts.sampler.load_weights(saved_weights(folder))
    world = parts.world
    mine = parts.heldout[world.process_index :: world.num_processes]
    records = evaluate(
        parts.rollouts, mine, parts.config.eval.temperature, parts.config.seed * 7919 + world.process_index
    )
    everyone: list[Record] = sorted(gather_object(records), key=lambda r: r.problem_id)
    if world.is_main_process:
        write_records(folder / "heldout.jsonl", everyone)
    return summarise(everyone)
