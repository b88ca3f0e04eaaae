"""Two sets of numbers and what they share, as in Graph of Thoughts: in one pass, or in parts that threads look up."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from apr_train.tasks.base import Form, Problem, Split, TaskError
from apr_train.tasks.sorting import parts_of, read_numbers, spaced
from apr_train.tasks.split import draw, generator, split_of
from rewards.verdict import Verifier
from rewards.verify.exact import NO_NUMBER, exact_set
from rollout.demonstration import Block, Demonstration


@dataclass(frozen=True, slots=True)
class SetIntersectionOptions:
    """Two sets of `size` numbers each (the paper: 32, 64 and 128) below `below`, of which a share is in both."""

    size: int = 32
    below: int = 64
    shared_min: float = 0.2
    shared_max: float = 0.7
    threads: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.size <= 4096 or not 2 <= self.threads <= self.size:
            raise TaskError(f"task set_intersection needs 2 <= size <= 4096 and 2 <= threads <= size, got {self}")
        if not 0 <= self.shared_min <= self.shared_max <= 1:
            raise TaskError(f"task set_intersection needs 0 <= shared_min <= shared_max <= 1, got {self}")
        room = 2 * self.size - int(self.shared_min * self.size)
        if self.below < room:
            raise TaskError(f"task set_intersection: two such sets need {room} numbers, below={self.below} has fewer")


def sets_of(text: str) -> tuple[list[int], list[int]]:
    """Both sets of one of this task's own problems."""
    one, _, other = text.partition(" & ")
    return [int(word) for word in one.split()], [int(word) for word in other.split()]


def looked_up(part: list[int], other: list[int]) -> str:
    """Each number of a part, with + where the other set has it, then those.

    >>> looked_up([7, 3, 9], [9, 1, 7])
    '7+ 3- 9+ = 7 9'
    """
    marks = " ".join(f"{number}{'+' if number in other else '-'}" for number in part)
    return f"{marks} = {shared(part, other)}"


def shared(part: list[int], other: list[int]) -> str:
    return spaced([number for number in part if number in other]) or NO_NUMBER


class SetIntersection:
    """`7 3 9 & 9 1 7` to `7 9`, in any order; `none` where they share nothing.

    `parts`: the threads of the demonstration."""

    name = "set_intersection"
    forms: tuple[Form, ...] = ("sequential", "parallel")
    verifier: Verifier = exact_set

    def __init__(self, options: SetIntersectionOptions) -> None:
        self.options = options

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """See Task. Neither the order of the numbers nor that of the sets moves a problem to the other side."""
        random = generator(self.name, split, count, seed)
        found: list[Problem] = []
        for index in range(count):
            one, other = draw(lambda: self._sets(random), _side, split)
            name = f"{self.name}-{split}-{seed}-{index}"
            prompt = f"{spaced(one)} & {spaced(other)}"
            found.append(Problem(name, prompt, shared(one, other), self.options.threads))
        return found

    def _sets(self, random: Random) -> tuple[list[int], list[int]]:
        options = self.options
        low = max(int(options.shared_min * options.size), 2 * options.size - options.below)
        both = random.randint(low, max(low, int(options.shared_max * options.size)))
        drawn = random.sample(range(options.below), 2 * options.size - both)
        one, other = drawn[: options.size], drawn[:both] + drawn[options.size :]
        random.shuffle(one)
        random.shuffle(other)
        return one, other

    def split(self, problem: Problem) -> list[str]:
        """The first set in `threads` parts, each against the whole of the other one."""
        one, other = sets_of(problem.prompt)
        return [f"{spaced(part)} & {spaced(other)}" for part in parts_of(one, self.options.threads)]

    def merge(self, problem: Problem, answers: Sequence[str]) -> str:
        """What the parts found, one after the other; what is no list of numbers is left out."""
        return spaced([number for answer in answers for number in read_numbers(answer) or []]) or NO_NUMBER

    def rate(self, text: str, answer: str) -> float:
        """1 - errors / size, at least 0 (arXiv 2308.09687): numbers that are not in both sets, are missing, or come
        twice. '7 3 9 & 9 1 7' answered '7 3': 3 is wrong and 9 is missing, 1 - 2/3."""
        one, other = map(Counter, sets_of(text))
        found = [] if answer.strip() == NO_NUMBER else read_numbers(answer)
        if found is None:
            return 0.0
        right = one & other
        errors = (Counter(found) - right).total() + (right - Counter(found)).total()
        return max(0.0, 1.0 - errors / one.total())

    def demonstration(self, problem: Problem, form: Form) -> Demonstration:
        """See Task. Sequential: every number of the first set is looked up. Parallel: each thread looks up a part."""
        one, other = sets_of(problem.prompt)
        if form == "sequential":
            return Demonstration((looked_up(one, other) + "\n",), problem.answer)
        parts = parts_of(one, self.options.threads)
        block = Block(
            tuple((spaced(part), looked_up(part, other)) for part in parts),
            tasks=tuple((f"{spaced(part)} & {spaced(other)}", shared(part, other)) for part in parts),
        )
        found = " | ".join(shared(part, other) for part in parts)
        return Demonstration((block, f"{found} = {problem.answer}\n"), problem.answer)


def _side(sets: tuple[list[int], list[int]]) -> Split:
    return split_of(f"set_intersection {sorted(map(sorted, sets))}")
