"""Self-training: sample with the current model, keep what is right and well-formed, train on it, evaluate; in rounds.

ThreadWeaver's and NPR's second stages are one round of it. A run that was killed goes on when it is started again:
every round's folder says how far it came.

    outputs/<name>/
      start/  sft/                 as in any run; sft/ is the warm start on demonstrations, if sft.steps says so
      round0/progress.json         held-out figures of the model that the first round samples with
      round1/kept.jsonl            the trajectories it trains on, as recorded rollouts
      round1/progress.json         batches done, what was rejected and why, held-out figures
      round1/model/                the Hugging Face folder that round 2 samples with
      summary.json
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from apr_train import identity
from apr_train.checkpoint import write_json
from apr_train.config import Config, ConfigError, SftConfig
from apr_train.evaluation.heldout import evaluate_folder, seal
from apr_train.harvest import Progress, harvest, read_kept
from apr_train.lifecycle import StopFlag
from apr_train.logger import LogCallback, quiet_libraries
from apr_train.metrics import heldout_metrics
from apr_train.problems import check_prompts, draw_problems
from apr_train.progress import claim, noted_stop
from apr_train.revival import Revival
from apr_train.run import Parts, leave_world, load_policy, open_parts, start_world, warm_start
from apr_train.sft import train_sft, trajectory_rows
from apr_train.tasks import make_task
from apr_train.tasks.base import Problem
from apr_train.weight_sync import saved_weights
from rewards.scored import Scored
from rollout.errors import UserError
from rollout.orchestrator import mix
from rollout.trajectory import Trajectory

SAMPLING = 2**33
"""Where a training seed has its step, the seed of a round's samples has this and the round."""
FREE = (*identity.FREE, "algorithm.steps", "reward", "self_train.rounds")
"""Keys that may change between two starts: they do not change what a round does."""


class SelfTrainError(UserError, RuntimeError):
    """A round cannot be trained: nothing was kept. Says what was rejected for which reason."""


class Stages(Protocol):
    """What a round is made of. Every rank calls all of them."""

    @property
    def writes(self) -> bool:
        """Whether this rank writes files."""
        ...

    def warm_start(self) -> None:
        """Trains `start/` on demonstrations into `sft/`."""
        ...

    def use(self, model: Path) -> None:
        """Says which weights to sample with; `collect` loads them."""
        ...

    def collect(self, problems: Sequence[Problem], seed: int, first: int) -> list[Scored]:
        """Samples and judges one trajectory per problem."""
        ...

    def train(self, source: Path, kept: Sequence[Trajectory], folder: Path) -> None:
        """Trains the model in `source` on trajectories, into `folder`."""
        ...

    def evaluate(self, model: Path) -> dict[str, Any]:
        """Held-out figures of a model; loads its weights."""
        ...

    def wait(self) -> None:
        """Until every rank is here."""
        ...


def run_rounds(
    config: Config, stages: Stages, problems: Sequence[Problem], folder: Path, say: Callable[[str], None] = print
) -> list[Progress]:
    """Round 0 (warm start, evaluation) and all rounds after it, from wherever an earlier start of this run came to."""
    first, model = folder / "round0", folder / ("sft" if config.sft.steps else "start")
    rounds = [Progress.load(first)]
    stages.wait()
    if config.sft.steps and not rounds[0].trained:
        stages.warm_start()
        _mark(rounds[0], first, stages, trained=True)
    if rounds[0].heldout is None:
        _mark(rounds[0], first, stages, heldout=stages.evaluate(model))
    for number in range(1, config.self_train.rounds + 1):
        here = folder / f"round{number}"
        done = Progress.load(here)
        stages.wait()
        if done.heldout is None:
            say(f"round {number}: sampling {len(problems)} problems, {config.self_train.samples_per_problem} each")
            done = _round(config, stages, problems, here, model, number)
        rounds.append(done)
        model = here / "model"
    return rounds


def _round(
    config: Config, stages: Stages, problems: Sequence[Problem], here: Path, model: Path, number: int
) -> Progress:
    """Samples with `model`, trains `here`/model, evaluates it; skips what is done."""
    settings, start = config.self_train, here.parent / "start"
    done = Progress.load(here)
    if not done.trained:

        def collect(problems: Sequence[Problem], seed: int, first: int) -> list[Scored]:
            # Each time anew: that empties the engine's caches, and what they hold is in the last digits of a log-prob.
            stages.use(model)
            return stages.collect(problems, seed, first)

        seed = mix(config.seed, SAMPLING, number)
        done = harvest(collect, problems, settings, number=number, seed=seed, folder=here, writes=stages.writes)
        stages.wait()
        if not done.kept:
            raise SelfTrainError(
                f"round {number} kept none of {done.sampled} trajectories ({_reasons(done.rejected)}): warm-start the "
                "model (sft=warm_start), loosen self_train.max_critical and min_eta, or sample more"
            )
        stages.train(start if settings.source == "start" else model, read_kept(here), here / "model")
        _mark(done, here, stages, trained=True)
    _mark(done, here, stages, heldout=stages.evaluate(here / "model"))
    return done


def _mark(progress: Progress, folder: Path, stages: Stages, **changes: Any) -> None:
    for name, value in changes.items():
        setattr(progress, name, value)
    if stages.writes:
        progress.save(folder)
    stages.wait()


def _reasons(rejected: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(rejected.items(), key=lambda each: -each[1]))


def summary_of(config: Config, rounds: Sequence[Progress]) -> dict[str, Any]:
    """What summary.json holds, the time it took aside: one entry a round, shares and means of what was kept."""
    return {"name": config.name, "seed": config.seed, "rounds": [_entry(k, each) for k, each in enumerate(rounds)]}


def _entry(number: int, done: Progress) -> dict[str, Any]:
    kept = max(1, done.kept)
    harvested: dict[str, Any] = {
        "sampled": done.sampled,
        "kept": done.kept,
        "kept_share": round(done.kept / max(1, done.sampled), 6),
        "kept_l_critical_mean": round(done.l_critical / kept, 6),
        "kept_l_total_mean": round(done.l_total / kept, 6),
        "kept_trigger_rate": round(done.forked / kept, 6),
        "rejected": done.rejected,
        "flaws": done.flaws,
    }
    return {"round": number, **(harvested if number else {}), "heldout": done.heldout or {}}


def check(config: Config, ranks: int = 1) -> None:
    """What only self-training needs of a valid configuration. Raises ConfigError."""
    if config.strategy.name == "hogwild":
        raise ConfigError("strategy=hogwild samples only: its trajectories cannot be trained on, take group_think")
    if config.sft.problems_per_step % ranks:
        raise ConfigError(f"sft.problems_per_step={config.sft.problems_per_step} must be a multiple of {ranks} ranks")


def describe(config: Config) -> str:
    """What a run would do, a few lines.

    >>> print(describe(load(["self_train=npr"])))
    1 round of 4096 problems x 8 samples, in batches of 64 problems
    ...
    """
    own, problems = config.self_train, config.data.train_problems
    limits = {"L_critical at most": own.max_critical, "eta at least": own.min_eta}
    kept = "".join(f", {name} {value}" for name, value in limits.items() if value is not None)
    most = "all that differ" if own.keep_per_problem is None else f"at most {own.keep_per_problem} a problem"
    length = "one epoch" if own.steps is None else f"{own.steps} updates"
    return (
        f"{own.rounds} round{'s' * (own.rounds > 1)} of {problems} problems x {own.samples_per_problem} samples, "
        f"in batches of {own.batch_problems} problems\n"
        f"keeps the right and strictly well-formed: {most}{kept}\n"
        f"trains {length} from {'the start' if own.source == 'start' else 'the last model'}, "
        f"{config.sft.problems_per_step} trajectories an update"
        + (f"; warm start first, {config.sft.steps} updates" if config.sft.steps else "")
    )


def sft_of_round(config: Config, kept: int) -> SftConfig:
    """The warm start's settings, for as many updates as a round has; at most a tenth of them warms up.

    >>> sft_of_round(Config(sft=SftConfig(problems_per_step=24, warmup_steps=30)), kept=991).steps
    42
    """
    own, sft = config.self_train, config.sft
    steps = own.steps or -(-kept // sft.problems_per_step)
    rate = sft.learning_rate if own.learning_rate is None else own.learning_rate
    return replace(sft, steps=steps, warmup_steps=min(sft.warmup_steps, -(-steps // 10)), learning_rate=rate)


@dataclass
class RunStages:
    """The stages of a real run."""

    parts: Parts
    model: Path | None = None
    """Samples."""
    revival: Revival | None = None
    """Of the round: a model samples in one alone."""

    @property
    def writes(self) -> bool:
        return self.parts.world.is_main_process

    def warm_start(self) -> None:
        """See Stages."""
        warm_start(self.parts, self.parts.folder / "start")

    def use(self, model: Path) -> None:
        """See Stages."""
        if model != self.model:
            self.model, self.revival = model, Revival(self.parts.rollouts)

    def collect(self, problems: Sequence[Problem], seed: int, first: int) -> list[Scored]:
        """See Stages: each rank samples its share, all know all."""
        world, rollouts = self.parts.world, self.parts.rollouts
        share = -(-len(problems) // world.num_processes)
        own = world.process_index * share
        mine = problems[own : own + share]
        temperature = self.parts.config.rollout.temperature

        def collect() -> list[Scored]:
            return rollouts.collect(mine, temperature=temperature, seed=seed, first=first + own)

        model, revival = self.model, self.revival
        assert model is not None and revival is not None  # `use` comes first
        return gather_object(revival.run(lambda: saved_weights(model), collect))

    def train(self, source: Path, kept: Sequence[Trajectory], folder: Path) -> None:
        """See Stages."""
        parts = self.parts
        scorable = [trajectory for trajectory in kept if all(parts.masks.scored(trajectory))]
        if len(scorable) < len(kept):
            parts.log.say(f"{len(kept) - len(scorable)} of {len(kept)} kept ones cannot be scored under dialect.mask")
        train_sft(
            replace(parts.config, sft=sft_of_round(parts.config, len(kept))),
            lambda: load_policy(parts, source, "tree"),
            parts.tokens.tokenizer,
            trajectory_rows(scorable, parts.masks),
            folder,
            parts.checkpoints(folder.parent.name),
            parts.world,
            LogCallback(parts.log, folder.parent.name),
            parts.flag,
            parts.rollouts.deadlines,
            parts.guard(folder.parent.name),
            parts.masks,
        )
        AcceleratorState._reset_state()  # the next trainer brings its own DeepSpeed plugin
        self.wait()

    def evaluate(self, model: Path) -> dict[str, Any]:
        """See Stages. Logs it at the number of the round, 0 before the first."""
        summary = evaluate_folder(self.parts, model)
        seal(model, self.parts.world.is_main_process)
        stage = model.parent.name if model.name == "model" else model.name
        number = int(stage.removeprefix("round")) if stage.startswith("round") else 0
        self.parts.log.heldout(f"{stage}_heldout", number, heldout_metrics(summary))
        return summary

    def wait(self) -> None:
        """See Stages."""
        self.parts.world.wait_for_everyone()


def self_train(config: Config) -> dict[str, Any]:
    """Runs or resumes all rounds and returns what `summary.json` holds. What a user can mend is a UserError."""
    started = time.perf_counter()
    quiet_libraries()
    world, folder = start_world(config), Path(config.output_dir)
    check(config, world.num_processes)
    config = replace(config, algorithm=replace(config.algorithm, steps=0))
    task, flag = make_task(config.data.task, config.data.options), StopFlag()
    flag.listen()
    drawn = draw_problems(config, task)
    problems = task.problems("train", config.data.train_problems, config.data.seed)
    claim(config, world, folder, [problems, drawn.heldout], FREE)
    with open_parts(config, world, folder, task, drawn, flag) as parts, noted_stop(folder, world):
        check_prompts(parts.tokens, problems, config)
        rounds = run_rounds(config, RunStages(parts), problems, folder, parts.log.say)
        summary = {**summary_of(config, rounds), "wall_seconds": round(time.perf_counter() - started, 1)}
        if world.is_main_process:
            write_json(folder / "summary.json", summary)
    leave_world(world)
    return summary
