"""Countdown as APR states it: reach a target from all the given numbers; instances, exact solver, search traces."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice
from random import Random

from apr_train.tasks.base import Form, Problem, Split, TaskError
from apr_train.tasks.split import MAX_DRAWS, draw, generator, split_of
from rewards.verdict import Verifier
from rewards.verify.countdown import countdown
from rollout.demonstration import Block, Demonstration


@dataclass(frozen=True, slots=True)
class Instances:
    """Which problems there are: APR's are 4 numbers of 1..99 and a target of 10..100."""

    numbers: int = 4
    number_max: int = 99
    target_min: int = 10
    target_max: int = 100

    def __post_init__(self) -> None:
        if not 3 <= self.numbers <= 5:
            raise TaskError(f"task countdown takes 3 to 5 numbers (the solver is exhaustive), got {self.numbers}")
        if self.number_max < 1 or not 1 <= self.target_min <= self.target_max:
            raise TaskError(f"task countdown needs number_max >= 1 and 1 <= target_min <= target_max, got {self}")


@dataclass(frozen=True, slots=True)
class CountdownOptions(Instances):
    """Instances, and the shape of demonstrations."""

    width: int = 4
    """First moves a demonstration explores: the threads of its parallel form."""
    breadth: int = 3
    """Moves it explores below each of them, per step."""

    def __post_init__(self) -> None:
        Instances.__post_init__(self)
        if not 2 <= self.width <= 6 or self.breadth < 1:
            raise TaskError(f"task countdown needs 2 <= width <= 6 and breadth >= 1, got {self}")


@dataclass(frozen=True, slots=True)
class Term:
    """A number on the table and the expression it came from."""

    value: int
    text: str
    operation: str = ""
    """The outermost operation of `text`; empty for a given number."""


@dataclass(frozen=True, slots=True)
class Move:
    """Two terms became one: `53-22=31`, and what is on the table then (the result last)."""

    label: str
    left: tuple[Term, ...]

    def rest(self) -> str:
        return f"left {' '.join(str(term.value) for term in self.left)}"


def results(large: int, small: int) -> list[tuple[str, int]]:
    """The legal operations on two numbers: sum, product, difference, exact quotient. Never below zero.

    >>> results(6, 2)
    [('+', 8), ('*', 12), ('-', 4), ('/', 3)]
    """
    found = [("+", large + small), ("*", large * small), ("-", large - small)]
    return [*found, ("/", large // small)] if small and large % small == 0 else found


def moves(table: tuple[Term, ...]) -> Iterator[Move]:
    """All legal moves on a table, the larger term first.

    >>> [(move.label, move.rest()) for move in moves(given((9, 2, 6)))][:2]
    [('9+2=11', 'left 6 11'), ('9*2=18', 'left 6 18')]
    """
    for i, j in combinations(range(len(table)), 2):
        large, small = sorted((table[i], table[j]), key=lambda term: term.value, reverse=True)
        rest = tuple(term for index, term in enumerate(table) if index not in (i, j))
        for operation, value in results(large.value, small.value):
            term = Term(value, _join(large, operation, small), operation)
            yield Move(f"{large.value}{operation}{small.value}={value}", (*rest, term))


def _join(left: Term, operation: str, right: Term) -> str:
    """The expression, with parentheses only where they are needed."""
    loose_left = operation in "*/" and left.operation in ("+", "-")
    loose_right = right.operation in {"+": (), "-": ("+", "-"), "*": ("+", "-"), "/": ("+", "-", "*", "/")}[operation]
    a, b = f"({left.text})" if loose_left else left.text, f"({right.text})" if loose_right else right.text
    return f"{a}{operation}{b}"


@lru_cache(maxsize=1 << 18)
def _solvable(values: tuple[int, ...], target: int) -> bool:
    """`values` in falling order."""
    if len(values) == 2:
        return any(value == target for _, value in results(*values))
    for i, j in combinations(range(len(values)), 2):
        rest = [value for index, value in enumerate(values) if index not in (i, j)]
        for _, value in results(values[i], values[j]):
            if _solvable(tuple(sorted([*rest, value], reverse=True)), target):
                return True
    return False


def solvable(table: tuple[Term, ...], target: int) -> bool:
    """Whether an exhaustive search reaches the target with every one of two numbers or more used.

    >>> solvable(given((53, 22, 2)), 62), solvable(given((1, 1, 1)), 99)
    (True, False)
    """
    return _solvable(tuple(sorted((term.value for term in table), reverse=True)), target)


def given(numbers: tuple[int, ...]) -> tuple[Term, ...]:
    """The table a problem starts from."""
    return tuple(Term(number, str(number)) for number in numbers)


def promising(table: tuple[Term, ...], target: int, count: int) -> list[Move]:
    """Up to `count` moves, nearest to the target's divisors first; one of them leads to the target if any move does."""
    divisors = [divisor for divisor in range(2, target + 1) if target % divisor == 0] or [target]

    def distance(move: Move) -> int:
        return sum(min(abs(term.value - divisor) for divisor in divisors) for term in move.left)

    # One move per resulting table: 6*1 and 6/1 lead to the same search.
    different = {tuple(sorted(term.value for term in move.left)): move for move in moves(table)}
    ranked = sorted(different.values(), key=distance)
    chosen = ranked[:count]
    if not any(solvable(move.left, target) for move in chosen):
        chosen[-1:] = [move for move in ranked if solvable(move.left, target)][:1] or chosen[-1:]
    return chosen


def explore(table: tuple[Term, ...], target: int, breadth: int) -> tuple[list[str], str | None]:
    """Depth-first below a move: the lines of the search, and the expression once the target is reached.

    >>> explore(given((31, 2)), 62, breadth=3)
    (['31+2=33', '31*2=62, reached'], '31*2')
    """
    lines: list[str] = []
    if len(table) == 2:
        for move in moves(table):
            lines.append(move.label)
            if move.left[0].value == target:
                lines[-1] += ", reached"
                return lines, move.left[0].text
        return lines, None
    for move in promising(table, target, breadth):
        below, solution = explore(move.left, target, breadth)
        lines += [f"{move.label}, {move.rest()}", *below]
        if solution is not None:
            return lines, solution
    return lines, None


class Countdown:
    """`Make 62 from 53, 22, 4, 2.`; the answer is an expression, the reference `62 from 53 22 4 2`.

    The order of the numbers does not move an instance to the other split.
    """

    name = "countdown"
    forms: tuple[Form, ...] = ("sequential", "parallel")
    verifier: Verifier = countdown

    def __init__(self, options: CountdownOptions) -> None:
        self.options = options

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """See Task."""
        found: list[Problem] = []
        for index, (target, drawn) in enumerate(islice(instances(self.options, split, count, seed), count)):
            prompt = f"Make {target} from {', '.join(map(str, drawn))}."
            parts = len(promising(given(drawn), target, self.options.width))
            found.append(Problem(f"{self.name}-{split}-{seed}-{index}", prompt, reference(target, drawn), parts))
        return found

    def demonstration(self, problem: Problem, form: Form) -> Demonstration:
        """See Task. Sequential: one first move after the other until one succeeds; parallel: a thread each."""
        target, _, *numbers = problem.answer.split(" ")
        table = given(tuple(map(int, numbers)))
        threads: list[tuple[str, str]] = []
        tasks: list[tuple[str, str]] = []
        answers: list[tuple[int, str]] = []
        for number, move in enumerate(promising(table, int(target), self.options.width), start=1):
            lines, solution = explore(move.left, int(target), self.options.breadth)
            threads.append((move.label, "\n".join([move.rest(), *lines, "found" if solution else "nothing"])))
            left = tuple(term.value for term in move.left)
            alone = explore(given(left), int(target), self.options.breadth)[1]
            tasks.append((f"Make {target} from {', '.join(map(str, left))}.", alone or "nothing"))
            answers += [(number, solution)] if solution else []
            if solution and form == "sequential":
                break
        number, answer = answers[0]
        if form == "sequential":
            return Demonstration(("".join(f"{label}, {body}\n" for label, body in threads),), answer)
        block = Block(tuple(threads), tasks=tuple(tasks))
        return Demonstration((block, f"Thread {number} reaches {target}.\n"), answer)


def reference(target: int, numbers: tuple[int, ...]) -> str:
    """What the verifiers compare with.

    >>> reference(62, (53, 22, 4, 2))
    '62 from 53 22 4 2'
    """
    return f"{target} from {' '.join(map(str, numbers))}"


def instances(options: Instances, split: Split, count: int, seed: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The first `count` solvable (target, numbers) of a split, and as many more as are asked for."""
    return _instances(options, split, generator("countdown", split, count, seed))


def _instances(options: Instances, split: Split, random: Random) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The target is drawn first, then the numbers again and again until they can make it."""

    def numbers() -> tuple[int, ...]:
        return tuple(random.randint(1, options.number_max) for _ in range(options.numbers))

    while True:
        target = random.randint(options.target_min, options.target_max)
        for _ in range(MAX_DRAWS):
            drawn = draw(numbers, lambda drawn, target=target: side(drawn, target), split)
            if solvable(given(drawn), target):
                break
        else:
            raise TaskError(f"task countdown: {MAX_DRAWS} draws cannot make {target}; widen number_max or numbers")
        yield target, drawn


def side(numbers: tuple[int, ...], target: int) -> Split:
    """The order of the numbers does not move an instance to the other split."""
    return split_of(f"countdown {sorted(numbers)} {target}")
