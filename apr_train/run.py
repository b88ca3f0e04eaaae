"""One run from start to end: model folder, SFT, RL, held-out evaluation, summary; or what is left of it."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from transformers import AutoTokenizer, PreTrainedModel

from apr_train import lora
from apr_train.arguments import grpo_arguments
from apr_train.checkpoint import Checkpoints, write_json
from apr_train.config import Config
from apr_train.deadlines import Deadlines
from apr_train.evaluation.heldout import evaluate_folder, seal
from apr_train.gap import GapGate
from apr_train.grpo_trainer import ForkJoinGRPOTrainer
from apr_train.guarded import Guard
from apr_train.identity import command_line
from apr_train.lifecycle import StopFlag
from apr_train.logger import LogCallback, MetricsLog, keep_lines, quiet_libraries
from apr_train.masks import Masks, masks_of
from apr_train.memory import Pieces
from apr_train.metrics import heldout_metrics
from apr_train.model import prepare_model_folder
from apr_train.panel import RolloutPanel
from apr_train.problems import Problems, check_prompts, draw_problems
from apr_train.progress import Progress, claim, noted_stop
from apr_train.rollouts import Rollouts, budget_of, strategy_of
from apr_train.sampler import make_sampler
from apr_train.saving import Saver
from apr_train.sft import demonstration_rows, train_sft
from apr_train.step_record import OnRollouts
from apr_train.stored import line_of
from apr_train.tasks import make_task
from apr_train.tasks.base import JudgesThreads, Splittable, Task
from apr_train.weight_sync import fingerprint, save_model
from rewards.build import make_reward
from rewards.verdict import BatchVerifier
from rollout.dialects import dialect_class, make_dialect
from rollout.engines import thread_vectors
from rollout.tokens import Tokens
from rollout.viewer import Recorded


@dataclass(frozen=True)
class Parts:
    """Everything a stage needs, made once."""

    config: Config
    folder: Path
    world: PartialState
    task: Task
    rollouts: Rollouts
    log: MetricsLog
    problems: Problems
    flag: StopFlag

    def checkpoints(self, stage: str) -> Checkpoints:
        """Those of a stage."""
        return Checkpoints(self.folder / "checkpoints" / stage, self.config.checkpoint.keep_last)

    def guard(self, stage: str) -> Guard:
        """What becomes of a stage's bad steps."""
        config, settings = self.config.guard, {"stage": stage, "config": asdict(self.config)}
        alone = self.world.num_processes == 1 and self.config.deepspeed.stage is None
        pieces = Pieces(self.folder, stage, alone, config.halvings, self.log.say)
        return Guard(self.folder / "bad_steps" / stage, pieces, settings, config.bad_steps, self.log.say)

    @property
    def tokens(self) -> Tokens:
        return self.rollouts.tokens

    @property
    def masks(self) -> Masks:
        return masks_of(self.config.dialect.mask, self.tokens)


def run(config: Config) -> dict[str, Any]:
    """Runs all stages, or those that an earlier start left, and returns what `summary.json` holds.

    What a user can mend is a UserError; Stopped, when the run was told to stop, has saved what was trained.
    """
    started = time.perf_counter()
    quiet_libraries()
    flag = StopFlag()
    flag.listen()
    world, folder = start_world(config), Path(config.output_dir)
    task = make_task(config.data.task, config.data.options)
    problems = draw_problems(config, task)
    claim(config, world, folder, [problems.sft, problems.rl, problems.heldout])
    progress = Progress.load(folder, world)
    if "finished" in progress.parts:
        if world.is_main_process:
            print(f"{folder} holds this run, finished: resume=never starts it anew", file=sys.stderr)
        return json.loads((folder / "summary.json").read_text())
    with open_parts(config, world, folder, task, problems, flag) as parts, noted_stop(folder, world):
        summary: dict[str, Any] = {"name": config.name, "seed": config.seed, "ranks": world.num_processes}
        start, progress.sampler = folder / "start", parts.rollouts.sampler
        if config.sft.steps:
            progress.once("sft", lambda: warm_start(parts, folder / "start"))
            start = folder / "sft"
            summary["sft"] = progress.once("sft_heldout", lambda: judged(parts, "sft", config.sft.steps))
            seal(folder / "sft", world.is_main_process)
        if config.algorithm.steps:
            summary["gap_logprob_mean_abs"] = progress.once("rl", lambda: _rl(parts, start))
            summary["rl"] = progress.once("rl_heldout", lambda: judged(parts, "rl", config.algorithm.steps))
            seal(folder / "rl", world.is_main_process)
        summary["wall_seconds"] = round(time.perf_counter() - started, 1)
        summary["command"] = command_line(world.num_processes)
        if world.is_main_process:
            write_json(folder / "summary.json", summary)
        progress.once("finished", lambda: True)
    leave_world(world)
    return summary


def leave_world(world: PartialState) -> None:
    """Ends the process group while all ranks are there: left to the interpreter's end, its threads may abort it."""
    if world.num_processes > 1:
        world.wait_for_everyone()
        torch.distributed.destroy_process_group()


def start_world(config: Config) -> PartialState:
    """Joins the ranks of torchrun (or makes a world of one), before DeepSpeed would, and before any model is made."""
    on_cpu = not torch.cuda.is_available()
    longest = (config.deadline.collective, config.deadline.update)  # torch's own end, for waits that have no name
    wait = timedelta(seconds=max(longest) + 60 if all(longest) else 10**6)
    if config.deepspeed.stage is not None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu" if on_cpu else "cuda")
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("MASTER_PORT", "0" if os.environ["WORLD_SIZE"] == "1" else "29500")
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo" if on_cpu else "nccl", timeout=wait)
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo" if on_cpu else "nccl", timeout=wait)
    return PartialState(cpu=on_cpu, timeout=wait)


@contextmanager
def open_parts(
    config: Config, world: PartialState, folder: Path, task: Task, problems: Problems, flag: StopFlag
) -> Iterator[Parts]:
    """Checks all that can be checked before anything of an earlier run is touched or the sampler starts."""
    tags = dialect_class(config.dialect.name).tags(config.dialect.options)
    with world.main_process_first():
        if world.is_main_process:
            prepare_model_folder(config.model, tags, folder / "start", config.seed)
    tokens = Tokens(AutoTokenizer.from_pretrained(folder / "start", trust_remote_code=False))
    dialect = make_dialect(config.dialect.name, tokens, config.dialect.join, config.dialect.options)
    check_prompts(tokens, [*problems.sft, *problems.rl, *problems.heldout], config)
    log = MetricsLog(config, folder, world.is_main_process)
    deadlines = Deadlines(asdict(config.deadline))
    with ExitStack() as ends:
        ends.callback(log.close)
        log.say(f"{config.name}: starting the sampler")
        with deadlines("engine_start"):
            sampler = make_sampler(config, folder / "start")
        ends.callback(sampler.close)
        if isinstance(task.verifier, BatchVerifier):
            ends.callback(task.verifier.close)
        budget, strategy = budget_of(config.rollout), strategy_of(config)
        stop, restarts = lambda: bool(flag), config.rollout.engine_restarts
        rollouts = Rollouts(
            *(sampler, dialect, tokens, task.verifier, budget, strategy, stop, deadlines),
            restarts=restarts,
            parts=task if isinstance(task, Splittable) else None,
            judge=task if isinstance(task, JudgesThreads) else None,
        )
        yield Parts(config, folder, world, task, rollouts, log, problems, flag)


def load_policy(parts: Parts, folder: Path, attention: str) -> PreTrainedModel:
    """The model to train, from a Hugging Face folder, with fresh adapters if it is to have some; `attention`: tree |
    sdpa."""
    config = parts.config.model
    model = thread_vectors.load(folder, dtype=getattr(torch, config.dtype), attn_implementation=attention)
    if not config.lora.rank:
        return model
    names = dialect_class(parts.config.dialect.name).tags(parts.config.dialect.options)
    tags = [parts.tokens.tag(name) for name in names]
    base = fingerprint(folder) if parts.world.is_main_process else ""
    return lora.adapt(model, config.lora, tags, seed=parts.config.seed, base=base)


def warm_start(parts: Parts, start: Path) -> None:
    """SFT of the model in `start` on demonstrations, into `sft/`."""
    config, rollouts = parts.config, parts.rollouts
    dataset = demonstration_rows(
        parts.task,
        parts.problems.sft,
        rollouts.dialect,
        parts.tokens,
        rollouts.budget,
        config.model.max_context,
        strategy=rollouts.strategy,
        masks=parts.masks,
        parallel_share=config.sft.parallel_share,
        checked_share=config.sft.checked_share,
        seed=config.seed,
    )
    # Always "tree": demonstrations are collated as tries, which plain attention would read as flat text.
    train_sft(
        config,
        lambda: load_policy(parts, start, "tree"),
        parts.tokens.tokenizer,
        dataset,
        parts.folder / "sft",
        parts.checkpoints("sft"),
        parts.world,
        LogCallback(parts.log, "sft"),
        parts.flag,
        parts.rollouts.deadlines,
        parts.guard("sft"),
        parts.masks,
    )
    AcceleratorState._reset_state()  # the next trainer brings its own DeepSpeed plugin
    parts.world.wait_for_everyone()


def _rl(parts: Parts, start: Path) -> float:
    """Runs GRPO from `start`, writes `rl/`; returns the mean gap between sampler and trainer over all steps."""
    config = parts.config
    warn, stop = config.algorithm.gap_warn, config.algorithm.gap_stop
    gate = GapGate(warn, stop) if parts.masks.exact else GapGate(math.inf, math.inf)  # else the gap is the experiment
    args = grpo_arguments(config, parts.folder / "rl" / "trainer", parts.world.num_processes)
    log = LogCallback(parts.log, "rl")
    trainer = ForkJoinGRPOTrainer(
        load_policy(parts, start, config.model.attention),
        args,
        parts.tokens.tokenizer,
        parts.problems.rl,
        rollouts=parts.rollouts,
        reward=make_reward(config.reward.terms),
        algorithm=config.algorithm,
        gate=gate,
        packed=config.model.attention == "tree",
        masks=parts.masks,
        on_rollouts=_rollout_writer(parts),
        callbacks=[log],
    )
    sampler = parts.rollouts.sampler

    def state() -> dict[str, Any]:
        return {"policy_version": sampler.policy_version, "gap": [gate.sum, gate.count]}

    def restore(step: int, state: dict[str, Any]) -> None:
        log.go_on(step)
        if parts.world.is_main_process:  # also of ranks that there are no more
            for file in parts.folder.glob("rollouts-rank*.jsonl"):
                keep_lines(file, lambda line: line["step"] <= step)
        if state:
            sampler.policy_version = state["policy_version"]
            gate.sum, gate.count = state["gap"]

    score, tokenizer = config.checkpoint.keep_best, parts.tokens.tokenizer
    trainer.attach(
        Saver(parts.checkpoints("rl"), tokenizer, parts.flag, state, restore, score, parts.rollouts.deadlines)
    )
    trainer.protect(parts.guard("rl"), tokenizer)
    trainer.resume_training()
    save_model(trainer.policy(), tokenizer, parts.folder / "rl", parts.world.is_main_process)
    parts.world.wait_for_everyone()
    return gate.mean


def judged(parts: Parts, stage: str, steps: int) -> dict[str, Any]:
    """Evaluates the stage's model, which `steps` updates made, and logs what was found."""
    summary = evaluate_folder(parts, parts.folder / stage)
    parts.log.heldout(f"{stage}_heldout", steps, heldout_metrics(summary))
    return summary


def rollouts_file(parts: Parts) -> Path:
    """Where this rank's trajectories go."""
    return parts.folder / f"rollouts-rank{parts.world.process_index}.jsonl"


def _rollout_writer(parts: Parts) -> OnRollouts:
    """Appends every n-th step's trajectories of this rank to rollouts-rank<r>.jsonl, and shows some of them in W&B."""
    every, path = parts.config.logger.rollouts_every, rollouts_file(parts)
    panel = RolloutPanel(parts.config, parts.log, parts.tokens)

    def write(recorded: Sequence[Recorded]) -> None:
        panel.write(recorded)
        if not every or recorded[0].step % every:
            return
        with path.open("a") as file:
            file.writelines(map(line_of, recorded))
            file.flush()
            os.fsync(file.fileno())  # as the metrics

    return write
