"""Well-formed scripts of every dialect, random and small, for checks and fuzzing."""

import random
from typing import Any

from apr_train.tasks import make_task
from rollout.demonstration import Block, Demonstration
from rollout.dialects.base import Dialect, DialectError, Script

SETTINGS: dict[str, dict[str, Any]] = {"apr": {"surface": "terse"}}
"""Dialect options that keep the scripts short."""


def random_demonstration(rng: random.Random, depth: int = 0) -> Demonstration:
    """Text and blocks of 1 to 4 threads, nested up to three deep."""

    def pieces(level: int) -> tuple[str | Block, ...]:
        found: list[str | Block] = []
        for _ in range(rng.randint(1, 2)):
            found.append("".join(rng.choices("ab12", k=rng.randint(0, 3))))
            if rng.random() < 0.7 - 0.25 * level:
                threads = tuple((rng.choice("ab"), pieces(level + 1)) for _ in range(rng.randint(1, 4)))
                tasks = tuple((f"{rng.choice('ab')}=", rng.choice("12")) for _ in threads)
                found.append(Block(threads, rng.choice(("", "c")), rng.choice(("and", "or")), tasks))
        return tuple(found)

    return Demonstration(pieces(depth), rng.choice("12"))


def scripts_of(name: str, dialect: Dialect, rng: random.Random, count: int) -> list[Script]:
    """Well-formed scripts: of random demonstrations, or of the solver for the dialect of search traces."""
    if name == "apr":
        task = make_task("countdown_search", {"numbers": 3, "surface": "terse"})
        return [dialect.write(task.demonstration(p, "parallel")) for p in task.problems("train", count, 0)]
    scripts: list[Script] = []
    while len(scripts) < count:
        try:
            scripts.append(dialect.write(random_demonstration(rng)))
        except DialectError:
            continue  # a dialect need not be able to write all of them
    return scripts
