"""Which side of the train/held-out line a problem is on, and seeded drawing from one side."""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from random import Random
from typing import TypeVar

from apr_train.tasks.base import Split, TaskError

Item = TypeVar("Item")
HELDOUT_SHARE = 0.2
MAX_DRAWS = 10_000


def hashed(key: str) -> int:
    """64 bits that depend on the key alone: the same on every machine and in every run."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


def split_of(key: str, heldout_share: float = HELDOUT_SHARE) -> Split:
    """The problem decides its side by itself, so no two seeds, counts or runs can put it on both sides."""
    return "heldout" if hashed(key) < heldout_share * 2**64 else "train"


def generator(task: str, split: str, count: int, seed: int) -> Random:
    """The random source of a (split, seed); TaskError for a split or count that cannot be."""
    if split not in ("train", "heldout"):
        raise TaskError(f"task {task} has no split {split!r}: use train or heldout")
    if count < 0:
        raise TaskError(f"task {task} cannot make {count} problems")
    return Random(f"{task}/{split}/{seed}")


def balanced(random: Random, sizes: range) -> Iterator[int]:
    """The sizes again and again, each cycle shuffled: equal shares, and a longer run begins like a shorter one."""
    while True:
        yield from random.sample(sizes, len(sizes))


def draw(make: Callable[[], Item], side: Callable[[Item], Split], split: Split) -> Item:
    """The first item on the wanted side. TaskError when 10,000 draws had none: the options leave no room."""
    for _ in range(MAX_DRAWS):
        item = make()
        if side(item) == split:
            return item
    raise TaskError(f"no {split} problem in {MAX_DRAWS} draws: widen the task's ranges in data.options")
