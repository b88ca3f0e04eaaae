"""Any data set of Reasoning Gym, made from a seed and judged by its own scorer; no demonstrations."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from random import Random
from typing import Any

from apr_train.tasks.base import Form, Problem, Split, TaskError
from apr_train.tasks.split import generator, split_of
from rewards.verdict import Verifier
from rewards.verify.gym import GymVerifier
from rollout.demonstration import Demonstration
from rollout.errors import shortened
from rollout.options import hint

CHUNK = 64
"""Entries that are made with one seed."""
SEEDS = 1 << 30
"""Training draws seeds below this one, evaluation from here on."""
MAX_DRY_CHUNKS = 50
"""Chunks in a row without one new problem, after which there are none."""


@dataclass(frozen=True, slots=True)
class GymOptions:
    """`dataset` names one of about 100; `config` are its own settings, e.g. {min_terms: 2} for chain_sum."""

    dataset: str = "chain_sum"
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    level: int | None = None
    """Difficulty from 0, of all that the data set's curriculum grades; `config` goes over it. null: no curriculum."""
    threshold: float = 1.0
    """The least score that is correct; many scorers give part of 1 for part of an answer."""
    suffix: str = ""
    """Written after every question."""
    allow: tuple[str, ...] = ()
    """Data sets to take although their scorers run the answer as Python, or take wrong ones (docs/benchmarks.md)."""
    deadline_s: float = 5.0
    verifier_workers: int = 1

    def __post_init__(self) -> None:
        if self.level is not None and self.level < 0:
            raise TaskError(f"task reasoning_gym needs level >= 0, got {self.level}")
        if taken := {"seed", "size"} & set(self.config):
            raise TaskError(f"task reasoning_gym: leave {' and '.join(sorted(taken))} out of config, data.seed rules")


class Gym:
    """Questions as the data set words them; `Problem.answer` is the entry as JSON, for the scorer.

    A question is on the side of its text's hash, whatever its seed, and the two sides draw from seeds apart. No
    question comes twice. `meta["source"]` is the data set, `meta["level"]` the level.
    """

    name = "reasoning_gym"
    forms: tuple[Form, ...] = ()

    def __init__(self, options: GymOptions) -> None:
        if find_spec("reasoning_gym") is None:
            raise TaskError("task reasoning_gym needs the package: pip install reasoning-gym==0.1.25, or make setup")
        self.options = options
        self._factory: Any = import_module("reasoning_gym.factory")  # seconds: only who needs it waits
        import_module("reasoning_gym")
        known = sorted(set(self._factory.DATASETS) - {"composite"})
        if options.dataset not in known:
            near = hint(options.dataset, known)
            short = near if near.startswith("did") else f"{len(known)} exist, e.g. {', '.join(known[:5])}"
            raise TaskError(f"reasoning-gym has no data set {options.dataset!r}: {short}")
        self._config = self._configured()
        next(self._chunk(0))  # says now what a setting would break later
        self.verifier: Verifier = GymVerifier(
            options.dataset,
            self._config,
            options.threshold,
            options.deadline_s,
            options.verifier_workers,
            options.allow,
        )

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """See Task. TaskError when the data set has fewer questions than asked for."""
        random = generator(f"{self.name} {self.options.dataset}", split, count, seed)
        found: dict[str, Problem] = {}
        dry = 0
        while len(found) < count:
            before = len(found)
            for entry in self._chunk(_seed(random, split)):
                question = str(entry["question"])
                if question not in found and split_of(f"gym {question}") == split:
                    found[question] = self._problem(f"{split}-{seed}-{len(found)}", question, entry)
                if len(found) == count:
                    break
            dry = dry + 1 if len(found) == before else 0
            if dry == MAX_DRY_CHUNKS:
                key = "data.train_problems" if split == "train" else "eval.problems"
                what = f"{self.options.dataset} has {len(found)} {split} problems under these settings"
                raise TaskError(f"{key}={count}: {what}; ask for fewer or widen data.options.config")
        return list(found.values())

    def demonstration(self, problem: Problem, form: Form) -> Demonstration:
        """TaskError: Reasoning Gym has answers and no solutions."""
        raise TaskError(f"task reasoning_gym has no {form} demonstration of {problem.id}: set sft=none")

    def _problem(self, name: str, question: str, entry: dict[str, Any]) -> Problem:
        meta = {"problem": question, "source": self.options.dataset}
        if self.options.level is not None:
            meta["level"] = str(self.options.level)
        kept = {key: entry[key] for key in ("question", "answer", "metadata")}
        answer = json.dumps(kept, ensure_ascii=False)
        return Problem(f"{self.options.dataset}-{name}", question + self.options.suffix, answer, None, meta)

    def _configured(self) -> dict[str, Any]:
        """The settings: those of the level, then the user's over them."""
        options = self.options
        if options.level is None:
            return options.config
        if not self._factory.has_curriculum(options.dataset):
            raise TaskError(f"data set {options.dataset} has no curriculum: leave data.options.level null, set config")
        curriculum: Any = self._factory.create_curriculum(options.dataset)
        for name, attribute in curriculum.attributes.items():
            curriculum.set_attr_level(name, min(options.level, len(attribute.levels) - 1))
        made = vars(curriculum.generate_configuration())
        chosen: dict[str, Any] = {}
        for attribute in curriculum.attributes.values():
            fields = [getattr(attribute, f"{side}field_name", None) for side in ("", "lower_", "upper_")]
            chosen |= {field: made[field] for field in fields if field is not None}
        return chosen | options.config

    def _chunk(self, seed: int) -> Iterator[dict[str, Any]]:
        """Entries of one seed, made as they are taken: some data sets need seconds for one.

        TaskError for settings that the data set does not take."""
        try:
            dataset = self._factory.create_dataset(self.options.dataset, **self._config, seed=seed, size=CHUNK)
            for index in range(CHUNK):
                yield dataset[index]
        except (TypeError, ValueError, AssertionError, KeyError, IndexError) as error:
            raise TaskError(f"data set {self.options.dataset} refuses its settings: {shortened(error)}") from error


def _seed(random: Random, split: Split) -> int:
    return random.randrange(1, SEEDS) + (SEEDS if split == "heldout" else 0)
