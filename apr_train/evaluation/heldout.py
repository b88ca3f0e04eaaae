"""Samples held-out problems for one row, batch after batch; a start after a stop goes on with the next batch."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from apr_train.checkpoint import replace_text
from apr_train.evaluation.metrics import summarise
from apr_train.evaluation.rows import Row, complete, rollouts_of
from apr_train.evaluation.samples import HELDOUT, Sample, read_samples, sample_of, write_samples
from apr_train.progress import HELDOUT_NOTES
from apr_train.revival import Revival
from apr_train.rollouts import Rollouts
from apr_train.stored import line_of, recorded
from apr_train.tasks.base import Problem
from apr_train.weight_sync import saved_weights
from rollout.seeds import mix

if TYPE_CHECKING:
    from apr_train.run import Parts

RECORDED = "rollouts.jsonl"
"""Trajectories of a row's first problems, for scripts/view_rollouts.py."""
RECORDED_NOTES = "rollouts.part.jsonl"
EVALUATION = 2**32
"""Where a training seed has its step, the seed of an evaluation has this."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sample to take: of which problem, and its number among that problem's."""

    problem: Problem
    number: int


def draws(problems: Sequence[Problem], samples: int) -> list[Drawn]:
    """Every sample to take, a problem's together."""
    return [Drawn(problem, number) for problem in problems for number in range(samples)]


def take(
    rollouts: Rollouts, drawn: Sequence[Drawn], row: Row, seed: int, first: int = 0, record: int = 0
) -> list[tuple[Sample, str | None]]:
    """Samples, judged; with the trajectory's line for those among the first `record` draws of the whole evaluation.

    `first` is the number of the first draw among all ranks' draws: what is sampled does not depend on who does it.
    """
    assert row.temperature is not None
    scored = rollouts.collect([each.problem for each in drawn], temperature=row.temperature, seed=seed, first=first)
    found: list[tuple[Sample, str | None]] = []
    for place, (each, one) in enumerate(zip(drawn, scored, strict=True), start=first):
        answer = rollouts.verifier.answer(rollouts.tokens.decode(one.response[:-1])) if one.response else None
        line = line_of(recorded(0, one)) if place < record else None
        found.append((sample_of(each.problem, each.number, one, answer or "", searched=rollouts.searched), line))
    return found


def evaluate_folder(parts: Parts, folder: Path) -> dict[str, Any]:
    """Figures of the weights in `folder`, as the run samples; `seal` puts the samples beside them. Collective."""
    return evaluate_row(parts, folder, folder, complete(parts.config, Row()))[0] if parts.problems.heldout else {}


def evaluate_row(parts: Parts, folder: Path, into: Path, row: Row) -> tuple[dict[str, Any], dict[str, float]]:
    """Evaluates the weights in `folder` as a complete row says, and notes its samples in `into`; returns what is
    measured of all samples, and the time of those that this start took. Collective.

    Whoever notes that the row is done calls `seal` after that: a kill in between loses nothing."""
    problems, world, settings = parts.problems.heldout, parts.world, parts.config.eval
    version, each = parts.rollouts.sampler.policy_version, row.samples or 1
    rollouts, seed = rollouts_of(parts.config, parts.rollouts, row), mix(parts.config.seed, EVALUATION)
    revival, drawn, clock = Revival(rollouts), draws(problems, each), Clock()
    samples, lines = _noted(parts, into)
    before, size = len(samples), (settings.batch_problems or len(problems)) * each
    while len(samples) < len(drawn):
        batch = drawn[len(samples) : len(samples) + size]
        share = -(-len(batch) // world.num_processes)
        mine = batch[world.process_index * share : (world.process_index + 1) * share]
        first = len(samples) + world.process_index * share
        parts.rollouts.sampler.policy_version = version  # one version, however many batches and starts it takes
        found = revival.run(
            lambda: saved_weights(folder),  # also empties the caches, which show in the last digits of a log-prob
            lambda mine=mine, first=first: take(rollouts, mine, row, seed, first, settings.record * each),
        )
        for sample, line in gather_object(found):
            samples.append(sample)
            lines += [] if line is None else [line]
        if world.is_main_process:
            replace_text(into / RECORDED_NOTES, "".join(lines))
            write_samples(into / HELDOUT_NOTES, samples)
    parts.rollouts.sampler.policy_version = version + 1  # also where an earlier start took all
    return summarise(samples), clock.read(len(samples) - before)


def seal(into: Path, is_main: bool) -> None:
    """Gives the files of a finished row their names. Does nothing where that was done. The samples come first: notes of
    samples without those of trajectories are none that a start can go on from."""
    for notes, name in ((HELDOUT_NOTES, HELDOUT), (RECORDED_NOTES, RECORDED)):
        if is_main and (into / notes).exists():
            (into / notes).replace(into / name)


def _noted(parts: Parts, into: Path) -> tuple[list[Sample], list[str]]:
    """What an earlier start took; the same on all ranks. Collective."""
    samples, lines = list[Sample](), list[str]()
    if parts.world.is_main_process and (into / HELDOUT_NOTES).exists():
        samples = read_samples(into / HELDOUT_NOTES)
        written = (into / RECORDED_NOTES).read_text().splitlines(keepends=True)
        lines = written[: len(samples)]  # written first: it may be one batch ahead
    told: list[Any] = [samples, lines]
    broadcast_object_list(told)
    return told[0], told[1]


class Clock:
    """Wall clock, and processor time of this process and of its children that have ended, since it was made;
    `device_seconds` are every GPU's of the node, for as long as it was held."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), sum(os.times()[:4])

    def read(self, samples: int) -> dict[str, float]:
        """Seconds, and seconds a sample, of `samples` taken since then; processor time of all ranks. Collective."""
        wall = time.perf_counter() - self._wall
        cpu = sum(gather_object([sum(os.times()[:4]) - self._cpu]))
        return {
            "samples": samples,
            "wall_seconds": round(wall, 3),
            "cpu_seconds": round(cpu, 3),
            "device_seconds": round(wall * torch.cuda.device_count(), 3),
            "seconds_per_sample": round(wall / samples, 4) if samples else 0.0,
        }
