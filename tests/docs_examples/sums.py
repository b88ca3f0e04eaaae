"""A task: sums of products, each product a piece of work of its own."""

import re
from dataclasses import dataclass

from apr_train.tasks.base import Form, Problem, Split, TaskError
from apr_train.tasks.split import balanced, draw, generator, split_of
from rewards.verdict import Verifier
from rewards.verify.exact import exact_integers
from rollout.demonstration import Block, Demonstration


@dataclass(frozen=True, slots=True)
class SumsOptions:
    """How many products, and how large their factors are; the range includes both ends."""

    products_min: int = 1
    products_max: int = 4
    high: int = 9

    def __post_init__(self) -> None:
        if not 1 <= self.products_min <= self.products_max:
            raise TaskError(f"task sums needs 1 <= products_min <= products_max, got {self}")
        if self.high < 2:
            raise TaskError(f"task sums needs high >= 2, got {self}")


class Sums:
    """`3*4 + 5*6 =`; `parts` is the number of products."""

    name = "sums"
    forms: tuple[Form, ...] = ("sequential", "parallel")
    verifier: Verifier = exact_integers

    def __init__(self, options: SumsOptions) -> None:
        self.options = options

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """See Task. The text of a problem decides its split, so that train and heldout never meet."""
        random = generator(self.name, split, count, seed)
        sizes = range(self.options.products_min, self.options.products_max + 1)

        def text(size: int) -> str:
            pairs = [(random.randint(2, self.options.high), random.randint(2, self.options.high)) for _ in range(size)]
            return " + ".join(f"{a}*{b}" for a, b in pairs)

        found: list[Problem] = []
        for index, size in zip(range(count), balanced(random, sizes), strict=False):
            drawn = draw(lambda size=size: text(size), lambda told: split_of(f"{self.name} {told}"), split)
            total = sum(product(each) for each in drawn.split(" + "))
            found.append(Problem(f"{self.name}-{split}-{seed}-{index}", f"{drawn} =", str(total), size))
        return found

    def demonstration(self, problem: Problem, form: Form) -> Demonstration:
        """See Task. Each product is a line; in the parallel form, a thread."""
        products = problem.prompt.removesuffix(" =").split(" + ")
        block = Block(tuple((each, f"{each}={product(each)}") for each in products))
        if form == "sequential":
            return Demonstration((block.in_sequence(),), problem.answer)
        if len(products) < 2:
            raise TaskError(f"problem {problem.id} has one part: only the sequential form exists")
        return Demonstration((block,), problem.answer)

    def thread_success(self, problem: Problem, asked: str, said: str) -> float | None:
        """See JudgesThreads. Nine digits at most: the text is the model's. `[0-9]`: `\\d` takes every script's."""
        found = re.fullmatch(r"[0-9]{1,9}\*[0-9]{1,9}", asked)
        return None if found is None else float(said.rstrip().endswith(f"={product(asked)}"))


def product(text: str) -> int:
    """Of two factors, as `3*4`."""
    left, right = text.split("*")
    return int(left) * int(right)
