"""Samples problems in batches and keeps the trajectories worth training on; a killed harvest goes on where it was."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from apr_train.checkpoint import write_json
from apr_train.config import SelfTrainConfig
from apr_train.stored import line_of, read_groups, recorded
from apr_train.tasks.base import Problem
from rewards.scored import Scored
from rollout.trajectory import Trajectory

KEPT, PROGRESS = "kept.jsonl", "progress.json"


class Collect(Protocol):
    """Samples and judges one trajectory per problem, as `Rollouts.collect` does; the same on every rank."""

    def __call__(self, problems: Sequence[Problem], seed: int, first: int) -> list[Scored]: ...


@dataclass
class Progress:
    """How far a round is. Counts and sums are over trajectories; `bytes` is what of kept.jsonl is valid."""

    batches: int = 0
    bytes: int = 0
    sampled: int = 0
    kept: int = 0
    forked: int = 0
    """Kept trajectories with at least one block."""
    l_critical: int = 0
    """Sum over the kept ones."""
    l_total: int = 0
    rejected: dict[str, int] = field(default_factory=dict[str, int])
    flaws: dict[str, int] = field(default_factory=dict[str, int])
    """What was wrong with the right ones that are not strictly well-formed."""
    trained: bool = False
    heldout: dict[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Writes it to the round's folder."""
        write_json(folder / PROGRESS, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Progress":
        """What `save` wrote; fresh where nothing was."""
        file = folder / PROGRESS
        return cls(**json.loads(file.read_text())) if file.exists() else cls()


def refusal(scored: Scored, limits: SelfTrainConfig) -> str | None:
    """Why a trajectory is not to be learned from; None when it may be.

    >>> refusal(Scored(trajectory, measure(trajectory), "wrong"), SelfTrainConfig())
    'wrong'
    """
    if not scored.correct:
        return scored.verdict
    if scored.flaw is not None:
        return "malformed"
    if limits.max_critical is not None and scored.lengths.l_critical > limits.max_critical:
        return "max_critical"
    if limits.min_eta is not None and scored.lengths.eta < limits.min_eta:
        return "min_eta"
    return None


def choose(samples: Sequence[Scored], limits: SelfTrainConfig) -> tuple[list[Scored], Counter[str]]:
    """Of one problem's samples those to keep, in the order they were sampled, and the reasons against the others.

    Equal ones count once; of more than `keep_per_problem` the shortest critical paths win, the earlier of equals.
    """
    reasons, seen, good = Counter[str](), set[Any](), list[Scored]()
    for each in samples:
        written = tuple((segment.thread, segment.ids) for segment in each.trajectory.segments)
        reason = refusal(each, limits) or ("repeated" if written in seen else None)
        seen.add(written)
        if reason is None:
            good.append(each)
        else:
            reasons[reason] += 1
    ranked = sorted(range(len(good)), key=lambda index: good[index].lengths.l_critical)
    best = sorted(ranked[: limits.keep_per_problem])
    if len(best) < len(good):
        reasons["keep_per_problem"] += len(good) - len(best)
    return [good[index] for index in best], reasons


def harvest(
    collect: Collect,
    problems: Sequence[Problem],
    config: SelfTrainConfig,
    *,
    number: int,
    seed: int,
    folder: Path,
    writes: bool = True,
) -> Progress:
    """Samples all problems for round `number` into `folder`/kept.jsonl; what an earlier call has saved is not sampled
    again, and the result is the same. Sample i draws from (seed, i). Only a rank that `writes` touches files.

    8 problems, 4 samples each, batch_problems=3: batches of 12, 12 and 8 samples; a kill in the third loses 8 at most.
    """
    progress, file = Progress.load(folder), folder / KEPT
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as kept:
            kept.truncate(progress.bytes)  # a batch that was written, and not yet counted
    samples, size = config.samples_per_problem, config.batch_problems
    for start in range(progress.batches * size, len(problems), size):
        batch = problems[start : start + size]
        scored = collect([problem for problem in batch for _ in range(samples)], seed, start * samples)
        chosen = [
            each
            for k in range(len(batch))
            for each in _count(scored[k * samples : (k + 1) * samples], config, progress)
        ]
        text = "".join(line_of(recorded(number, _of_round(each, number))) for each in chosen).encode()
        progress.batches += 1
        progress.bytes += len(text)
        if writes:
            with file.open("ab") as kept:
                kept.write(text)
                kept.flush()
                os.fsync(kept.fileno())
            progress.save(folder)
    return progress


def _count(samples: Sequence[Scored], config: SelfTrainConfig, progress: Progress) -> list[Scored]:
    """What is kept of one problem's samples; adds them to the counts."""
    kept, reasons = choose(samples, config)
    progress.sampled += len(samples)
    progress.kept += len(kept)
    progress.forked += sum(each.lengths.blocks > 0 for each in kept)
    progress.l_critical += sum(each.lengths.l_critical for each in kept)
    progress.l_total += sum(each.lengths.l_total for each in kept)
    progress.rejected = dict(Counter(progress.rejected) + reasons)
    flaws = Counter(each.flaw for each in samples if each.correct and each.flaw is not None)
    progress.flaws = dict(Counter(progress.flaws) + flaws)
    return kept


def _of_round(scored: Scored, number: int) -> Scored:
    """How often weights were loaded differs after a restart; the round does not."""
    return replace(scored, trajectory=replace(scored.trajectory, policy_version=number))


def read_kept(folder: Path) -> list[Trajectory]:
    """The trajectories of a finished harvest, in the order in which they were written."""
    if not (folder / KEPT).stat().st_size:
        return []
    return [member.trajectory for _, group in read_groups([folder / KEPT]) for member in group.members]
