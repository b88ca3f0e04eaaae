"""Lists of digits to sort, as in Graph of Thoughts: by counting, in one pass, or in parts that threads sort."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import pairwise

from apr_train.tasks.base import Form, Problem, Split, TaskError
from apr_train.tasks.split import draw, generator, split_of
from rewards.verdict import Verifier
from rewards.verify.exact import exact_integers
from rollout.demonstration import Block, Demonstration

LONGEST = 18
"""Digits of a number that is read."""


@dataclass(frozen=True, slots=True)
class SortingOptions:
    """`length` digits from 0 to 9 (the paper: 32, 64 and 128), demonstrated in `threads` parts of equal size."""

    length: int = 32
    threads: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.length <= 4096:
            raise TaskError(f"task sorting needs 2 <= length <= 4096, got {self.length}")
        if not 2 <= self.threads <= self.length:
            raise TaskError(f"task sorting needs 2 <= threads <= length={self.length}, got {self.threads}")


SORT = "Sort: "


def numbers_of(text: str) -> list[int]:
    """The numbers of one of this task's own problems."""
    return [int(word) for word in text.removeprefix(SORT).split()]


def read_numbers(answer: str) -> list[int] | None:
    """The numbers of a model's answer; None where it is something else."""
    words = answer.split()
    fine = all(word.isascii() and word.isdigit() and len(word) <= LONGEST for word in words)
    return [int(word) for word in words] if fine else None


def spaced(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def parts_of(numbers: list[int], count: int) -> list[list[int]]:
    """Neighbours in `count` parts whose sizes differ by one at most.

    >>> parts_of([5, 1, 4, 2, 3], 2)
    [[5, 1], [4, 2, 3]]
    """
    cuts = [len(numbers) * k // count for k in range(count + 1)]
    return [numbers[low:high] for low, high in pairwise(cuts)]


def counted(numbers: list[int]) -> str:
    """A list sorted by counting: how often each digit occurs, then that many of it.

    >>> counted([3, 1, 3])
    '3 1 3: 1x1 3x2 = 1 3 3'
    """
    counts = " ".join(f"{digit}x{numbers.count(digit)}" for digit in sorted(set(numbers)))
    return f"{spaced(numbers)}: {counts} = {spaced(sorted(numbers))}"


def merged(parts: list[list[int]]) -> str:
    """Sorted parts merged two at a time, a line for each merge.

    >>> merged([[1, 3], [2], [2, 5]])
    '1 3 | 2 = 1 2 3\\n1 2 3 | 2 5 = 1 2 2 3 5\\n'
    """
    left, lines = parts[0], list[str]()
    for right in parts[1:]:
        both = sorted(left + right)
        lines.append(f"{spaced(left)} | {spaced(right)} = {spaced(both)}\n")
        left = both
    return "".join(lines)


class Sorting:
    """`Sort: 3 1 3` to `1 3 3`; every part has a thread. `parts`: the threads of the demonstration."""

    name = "sorting"
    forms: tuple[Form, ...] = ("sequential", "parallel")
    verifier: Verifier = exact_integers

    def __init__(self, options: SortingOptions) -> None:
        self.options = options

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """See Task. Lists of the same digits in another order are on the same side."""
        random = generator(self.name, split, count, seed)
        found: list[Problem] = []
        for index in range(count):
            numbers = draw(lambda: [random.randint(0, 9) for _ in range(self.options.length)], _side, split)
            name = f"{self.name}-{split}-{seed}-{index}"
            found.append(Problem(name, f"{SORT}{spaced(numbers)}", spaced(sorted(numbers)), self.options.threads))
        return found

    def split(self, problem: Problem) -> list[str]:
        """A problem for each of `threads` neighbouring parts."""
        return [f"{SORT}{spaced(part)}" for part in parts_of(numbers_of(problem.prompt), self.options.threads)]

    def merge(self, problem: Problem, answers: Sequence[str]) -> str:
        """The parts merged as if each were sorted; what is no list of numbers is left out."""
        return spaced(list(merge(*(read_numbers(answer) or [] for answer in answers))))

    def rate(self, text: str, answer: str) -> float:
        """1 - errors / length, at least 0 (arXiv 2308.09687): neighbours out of order, and by how much the count of
        each digit is off. 'Sort: 3 1 3' answered '1 3': one 3 is missing, 1 - 1/3."""
        given, found = numbers_of(text), read_numbers(answer)
        if found is None:
            return 0.0
        unordered = sum(left > right for left, right in pairwise(found))
        missing, extra = Counter(given) - Counter(found), Counter(found) - Counter(given)
        return max(0.0, 1.0 - (unordered + missing.total() + extra.total()) / len(given))

    def demonstration(self, problem: Problem, form: Form) -> Demonstration:
        """See Task. Sequential: the whole list by counting. Parallel: split, count each part in a thread, merge."""
        numbers = numbers_of(problem.prompt)
        if form == "sequential":
            return Demonstration((counted(numbers) + "\n",), problem.answer)
        parts = parts_of(numbers, self.options.threads)
        block = Block(
            tuple((spaced(part), counted(part)) for part in parts),
            tasks=tuple((f"{SORT}{spaced(part)}", spaced(sorted(part))) for part in parts),
        )
        return Demonstration((block, merged([sorted(part) for part in parts])), problem.answer)


def _side(numbers: list[int]) -> Split:
    return split_of(f"sorting {sorted(numbers)}")
