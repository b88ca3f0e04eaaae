"""Products of several integers: left to right, or as a reduction tree whose levels are parallel blocks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from apr_train.tasks.base import Form, Problem, Split, TaskError
from apr_train.tasks.split import balanced, draw, generator, split_of
from rewards.verdict import Verifier
from rewards.verify.exact import exact_integers
from rollout.demonstration import Block, Demonstration

_PRODUCT = re.compile(r"[0-9]+(?: ?\* ?[0-9]+)+(?: ?=)?")
_LONGEST = 200
"""Characters of a product that a thread is asked for."""


@dataclass(frozen=True, slots=True)
class MultiplicationOptions:
    """How many factors, and from where; ranges include both ends."""

    factors_min: int = 5
    factors_max: int = 8
    low: int = 0
    high: int = 1000

    def __post_init__(self) -> None:
        if not 2 <= self.factors_min <= self.factors_max:
            raise TaskError(f"task multiplication needs 2 <= factors_min <= factors_max, got {self}")
        if not 0 <= self.low <= self.high:
            raise TaskError(f"task multiplication needs 0 <= low <= high, got {self}")


def total(parts: list[int]) -> str:
    """A sum, one addition at a time.

    >>> total([3000, 10, 2])
    '3000 + 10 + 2 = 3010 + 2 = 3012'
    """
    steps: list[str] = []
    while len(parts) > 1:
        steps.append(" + ".join(map(str, parts)))
        parts = [parts[0] + parts[1], *parts[2:]]
    return " = ".join([*steps, str(parts[0])])


def places(number: int, width: int) -> list[int]:
    """The number as a sum of groups of `width` digits, without those that are zero.

    >>> places(91350, 1), places(91350, 3), places(0, 3)
    ([90000, 1000, 300, 50], [91000, 350], [0])
    """
    unit, found = 1, list[int]()
    while number:
        number, group = divmod(number, 10**width)
        found = [group * unit, *found] if group else found
        unit *= 10**width
    return found or [0]


def partial(a: int, place: int) -> str:
    """A number times one digit and its zeros, digit by digit with carries, from the right.

    >>> partial(47, 300)
    '47*300: 7*3=21 4*3+2=14 = 14100'
    """
    digit, carry, steps = int(str(place)[0]), 0, list[str]()
    for other in reversed(str(a)):
        value = int(other) * digit + carry
        steps.append(f"{other}*{digit}" + (f"+{carry}" if carry else "") + f"={value}")
        carry = value // 10
    return f"{a}*{place}: {' '.join(steps)} = {a * place}"


def work(a: int, b: int) -> str:
    """One product: a line for each digit of the smaller factor, then their sum.

    >>> work(12, 301)
    '301*10: 1*1=1 0*1=0 3*1=3 = 3010\\n301*2: 1*2=2 0*2=0 3*2=6 = 602\\n3010 + 602 = 3612'
    """
    a, b = max(a, b), min(a, b)
    digits = places(b, 1)
    lines = [partial(a, digit) for digit in digits]
    sums = [total([a * digit for digit in digits])] if len(digits) > 1 else []
    return "\n".join([*lines, *sums])


class Multiplication:
    """`12 * 7 * 301 * 9 * 44 =`; equal shares of every number of factors. `parts`: pairs of the first block."""

    name = "multiplication"
    forms: tuple[Form, ...] = ("sequential", "parallel")
    verifier: Verifier = exact_integers

    def __init__(self, options: MultiplicationOptions) -> None:
        self.options = options

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """See Task. The order of the factors does not move a product to the other split."""
        random = generator(self.name, split, count, seed)
        low, high = self.options.low, self.options.high
        sizes = range(self.options.factors_min, self.options.factors_max + 1)
        found: list[Problem] = []
        for index, size in zip(range(count), balanced(random, sizes), strict=False):
            factors = draw(lambda size=size: [random.randint(low, high) for _ in range(size)], _side, split)
            prompt = f"{' * '.join(map(str, factors))} ="
            name = f"{self.name}-{split}-{seed}-{index}"
            found.append(Problem(name, prompt, str(prod(factors)), max(1, size // 2)))
        return found

    def demonstration(self, problem: Problem, form: Form) -> Demonstration:
        """See Task. Sequential: left to right. Parallel: pairs as threads, then pairs of their products, until one is
        left; a long product is split into threads of three digits each, or the last one would eat the gain."""
        factors = [int(factor) for factor in problem.prompt.removesuffix(" =").split(" * ")]
        if form == "sequential":
            firsts = [prod(factors[:count]) for count in range(1, len(factors))]
            products = [f"{a} * {b}:\n{work(a, b)}\n" for a, b in zip(firsts, factors[1:], strict=True)]
            return Demonstration(("".join(products),), problem.answer)
        if len(factors) < 4:
            raise TaskError(f"problem {problem.id} has one part: only the sequential form exists")
        return Demonstration(tuple(_tree(factors)), problem.answer)

    def thread_success(self, problem: Problem, asked: str, said: str) -> float | None:
        """See JudgesThreads. A thread that is asked for a product, as `91 * 300` or `91 * 300 =`, is right when what it
        says is that or ends with `=` and it. None for any other task line: a product of no use to the problem is one.

        >>> task.thread_success(problem, "91 * 300", "91*300: 1*3=3 9*3=27 = 27300\\n")
        1.0
        """
        wanted = asked.strip()
        if len(wanted) > _LONGEST or not _PRODUCT.fullmatch(wanted):
            return None
        result = str(prod(int(factor) for factor in wanted.removesuffix("=").split("*")))
        before, found, after = said.rstrip().rpartition(result)
        return float(bool(found) and not after and (not before.strip() or before.rstrip().endswith("=")))


def _tree(factors: list[int]) -> Iterator[str | Block]:
    while len(factors) > 1:
        pairs = [sorted(factors[i : i + 2], reverse=True) for i in range(0, len(factors) - 1, 2)]
        pieces = [(a, group) for a, b in pairs for group in places(b, 3)]
        if len(pieces) > 1:
            threads = tuple((f"{a} * {group}", work(a, group)) for a, group in pieces)
            yield Block(threads, tasks=tuple((f"{a} * {group} =", str(a * group)) for a, group in pieces))
        else:
            yield work(*pieces[0]) + "\n"
        sums = [total([a * group for group in places(b, 3)]) for a, b in pairs if len(places(b, 3)) > 1]
        factors = [a * b for a, b in pairs] + factors[2 * len(pairs) :]
        left = [f"Left: {' * '.join(map(str, factors))}"] if len(factors) > 1 else []
        if sums or left:
            yield "".join(f"{line}\n" for line in [*sums, *left])


def _side(factors: list[int]) -> Split:
    return split_of(f"multiplication {sorted(factors)}")
