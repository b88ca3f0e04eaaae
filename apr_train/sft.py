"""Warm start: TRL's SFTTrainer on demonstrations, recorded as the calls a sampler would make, packed in one row."""

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import RandomSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer

from apr_train.arguments import common_arguments
from apr_train.checkpoint import Checkpoints
from apr_train.config import Config
from apr_train.dag_packing import TrajectoryCall
from apr_train.deadlines import Deadlines
from apr_train.guarded import Guard, GuardedTrainer
from apr_train.lifecycle import StopFlag
from apr_train.logger import LogCallback
from apr_train.masks import EXACT, Masks
from apr_train.saving import Reseeded, Saver, SavingTrainer
from apr_train.tasks.base import Form, Problem, Task, TaskError
from apr_train.tree_attention import plan_attention
from apr_train.weight_sync import save_model
from rollout.dialects.base import Dialect
from rollout.engine import EngineError
from rollout.engines import thread_vectors
from rollout.engines.replay import ReplayEngine
from rollout.orchestrator import FORK_JOIN, Budget, Strategy, run_trajectory
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory


def record_demonstration(
    task: Task,
    problem: Problem,
    form: Form,
    dialect: Dialect,
    tokens: Tokens,
    budget: Budget,
    max_context: int,
    strategy: Strategy = FORK_JOIN,
) -> Trajectory:
    """The trajectory of a policy that writes this demonstration. Raises TaskError when it breaks budget or grammar."""
    engine = ReplayEngine(dialect.write(task.demonstration(problem, form)), max_context)
    what = f"the {form} demonstration of {problem.id}"
    too_long = TaskError(
        f"{what}, {engine.tokens} tokens of its own, does not fit: raise rollout.max_response_tokens, "
        "rollout.max_critical_tokens or model.max_context, or drop the problem"
    )
    prompt = tokens.prompt(problem.prompt)
    try:
        trajectory = asyncio.run(run_trajectory(engine, dialect, problem.id, prompt, budget, strategy=strategy))
    except EngineError as error:
        if engine.cut:  # what was cut off asked to go on, which a script cannot
            raise too_long from error
        raise
    if engine.cut:
        raise too_long
    flaw = dialect.check(trajectory)
    if trajectory.outcome != "answered" or flaw:
        raise TaskError(
            f"{what} ends {trajectory.outcome!r} ({flaw or 'refused by the client'}): raise rollout.max_threads, "
            "rollout.max_blocks or rollout.max_response_tokens, or drop the problem"
        )
    return trajectory


def demonstration_rows(
    task: Task,
    problems: Sequence[Problem],
    dialect: Dialect,
    tokens: Tokens,
    budget: Budget,
    max_context: int,
    *,
    parallel_share: float,
    checked_share: float = 0.0,
    seed: int,
    strategy: Strategy = FORK_JOIN,
    masks: Masks = EXACT,
) -> Dataset:
    """One example per problem, as `trajectory_rows` makes them.

    A problem of one part, or of unknown parts, is shown sequentially; the others in parallel with chance
    `parallel_share`; any problem in the checked form with chance `checked_share`. Drawn from (seed, problem) alone.
    Raises TaskError when the task has no such form.
    """
    if checked_share and "checked" not in task.forms:
        raise TaskError(f"sft.checked_share={checked_share}: task {task.name} has no checked form; arithmetic has")

    def record(problem: Problem) -> Trajectory:
        chance = random.Random(f"{seed}/{problem.id}").random()
        parallel = (problem.parts or 1) > 1 and chance < parallel_share
        form: Form = "parallel" if parallel else "checked" if chance >= 1.0 - checked_share else "sequential"
        return record_demonstration(task, problem, form, dialect, tokens, budget, max_context, strategy)

    return trajectory_rows(map(record, problems), masks)


def trajectory_rows(trajectories: Iterable[Trajectory], masks: Masks = EXACT) -> Dataset:
    """One example per trajectory: `rows` (its calls, context + sampled) and `contexts` (how much of each is context);
    `trajectory` is its JSON line where the rows do not say what the calls see under `masks`, and empty where they do.

    Raises TaskError for one that cannot be scored under `masks`.
    """
    rows, contexts, lines = [], [], []
    for trajectory in trajectories:
        if not all(masks.scored(trajectory)):
            raise TaskError(
                f"{trajectory.problem_id} cannot be scored under this dialect.mask; take dialect.mask=exact"
            )
        lines.append(trajectory.to_json() if any(masks.structured(trajectory)) else "")
        calls = list(trajectory.rows())
        rows.append([[*context, *sampled] for context, sampled, _ in calls])
        contexts.append([len(context) for context, _, _ in calls])
    return Dataset.from_dict({"rows": rows, "contexts": contexts, "trajectory": lines})


@dataclass(frozen=True)
class Examples:
    """What a batch was collated from. No plain list: moving a batch to a device would go through every token."""

    rows: list[dict[str, Any]]


def untrained(example: dict[str, Any]) -> dict[str, Any]:
    """The first two tokens of an example, neither of them to be learnt: for a piece that has nothing to do."""
    return {"rows": [example["rows"][0][:2]], "contexts": [2], "trajectory": ""}


def collate_tries(
    examples: list[dict[str, Any]],
    device: torch.device | str = "cpu",
    masks: Masks = EXACT,
    model: Any = None,
) -> dict[str, Any]:
    """Examples -> one packed row (1, N) whose labels are the sampled tokens, and the plan its attention follows; for a
    `model` with thread vectors also the number of each token's thread.

    Each example is a tree of its own, so a token that two examples train counts twice, as it would unpacked; and so
    is a row that would train a position which an earlier row of its example trains, as threads of equal headers do.
    """
    calls: list[TrajectoryCall | None] = []
    for example in examples:
        trajectory = Trajectory.from_json(example["trajectory"]) if example["trajectory"] else None
        if trajectory is None:
            calls += [None] * len(example["rows"])
            continue
        calls += [
            TrajectoryCall(trajectory, index) if structured else None
            for index, structured in enumerate(masks.structured(trajectory))
        ]
    rows = [row for example in examples for row in example["rows"]]
    contexts = [context for example in examples for context in example["contexts"]]
    numbers = [index for index, example in enumerate(examples) for _ in example["rows"]]
    trees = _apart(numbers, rows, contexts, calls)
    packed = masks.pack(rows, contexts, calls, trees)
    labels = packed.shift_labels[None]
    return {
        "input_ids": packed.input_ids[None],
        "position_ids": packed.position_ids[None],
        "labels": labels,  # Trainer counts the batch's items only when this key is there; TRL reads the shifted ones
        "shift_labels": labels,
        "tree": plan_attention(packed, device),
        "examples": Examples(examples),
        **({} if model is None else thread_vectors.arguments(model, packed.threads, packed.input_ids[None])),
    }


def _apart(
    numbers: Sequence[int], rows: Sequence[Sequence[int]], contexts: Sequence[int], calls: Sequence[Any]
) -> list[int]:
    """A tree for each row: that of its example, where no other row of the tree trains the same position.

    >>> _apart([0, 0, 0], [[7, 8, 1, 2], [7, 8, 1, 3], [7, 8, 2, 3]], [2, 2, 2], [None] * 3)  # the 1 counts twice
    [0, 1, 0]
    """

    def shares(r: int, other: int) -> bool:
        first = max(contexts[r], contexts[other]) + 1
        return min(len(rows[r]), len(rows[other])) >= first and rows[r][:first] == rows[other][:first]

    trees: list[int] = []
    members: dict[tuple[int, int], list[int]] = {}  # (example, which of its trees) -> rows
    for r, number in enumerate(numbers):
        own = 0
        while calls[r] is None and any(shares(r, other) for other in members.get((number, own), [])):
            own += 1
        if calls[r] is None:
            members.setdefault((number, own), []).append(r)
        trees.append(number + own * (max(numbers) + 1))
    return trees


class DemonstrationTrainer(SavingTrainer, GuardedTrainer, SFTTrainer):
    """TRL's trainer, which can be stopped and resumed, over batches of `collate_tries`."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """TRL's, of what the model takes."""
        taken = {key: value for key, value in inputs.items() if key != "examples"}
        return super().compute_loss(model, taken, *args, **options)

    def _recorded(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"examples": batch["examples"].rows}

    def _parts_of(self, batch: dict[str, Any]) -> int:
        return len(batch["examples"].rows)

    def _cut(self, batch: dict[str, Any], pieces: int) -> list[dict[str, Any]]:
        examples: list[dict[str, Any]] = batch["examples"].rows
        return [self.data_collator(examples[piece::pieces] or [untrained(examples[0])]) for piece in range(pieces)]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        generator, dataset = torch.Generator(), cast(Any, self.train_dataset)
        steps = math.ceil(len(dataset) / (self.args.per_device_train_batch_size * self.args.world_size))
        shuffled = RandomSampler(dataset, generator=generator)
        return Reseeded(shuffled, generator, self.args.seed, lambda: self.state.global_step // steps)


def demonstration_trainer(
    config: Config,
    load: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    folder: Path,
    ranks: int,
    masks: Masks = EXACT,
    callbacks: Sequence[TrainerCallback] = (),
) -> DemonstrationTrainer:
    """The trainer of `config.sft` over `trajectory_rows`. `load` is called once the arguments exist: under ZeRO-3 they
    decide how the model is made."""
    sft = config.sft
    args = TrlSftConfig(
        **common_arguments(config, folder),
        max_steps=sft.steps,
        per_device_train_batch_size=sft.problems_per_step // ranks,
        learning_rate=sft.learning_rate,
        warmup_steps=sft.warmup_steps,
        weight_decay=sft.weight_decay,
        lr_scheduler_type="cosine",
        adam_beta2=0.95,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    model = load()
    trainer = DemonstrationTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        data_collator=partial(collate_tries, device=args.device, masks=masks, model=model),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train_sft(
    config: Config,
    load: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    folder: Path,
    checkpoints: Checkpoints,
    world: PartialState,
    log: LogCallback,
    flag: StopFlag,
    deadlines: Deadlines,
    guard: Guard,
    masks: Masks = EXACT,
) -> None:
    """Runs `config.sft.steps` updates and writes model and tokenizer to `folder`; its checkpoints lie in `checkpoints`.

    Goes on from the newest checkpoint, and raises Halted as SavingTrainer does.
    """
    trainer = demonstration_trainer(
        config, load, tokenizer, dataset, folder / "trainer", world.num_processes, masks, [log]
    )
    trainer.attach(Saver(checkpoints, tokenizer, flag, restore=lambda step, _: log.go_on(step), deadlines=deadlines))
    trainer.protect(guard, tokenizer)
    trainer.resume_training()
    trained = cast(PreTrainedModel, trainer.accelerator.unwrap_model(trainer.model))
    save_model(trained, tokenizer, folder, world.is_main_process)
