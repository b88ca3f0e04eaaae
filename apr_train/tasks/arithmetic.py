"""The toy: independent chains that count on from a digit; the answer collects where each one ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random
from string import ascii_lowercase, ascii_uppercase

from apr_train.tasks.base import Form, Problem, Split, TaskError
from apr_train.tasks.split import balanced, draw, generator, hashed
from rewards.verdict import Verifier
from rewards.verify.exact import exact_text
from rollout.demonstration import Block, Demonstration

HELDOUT_IN = 5
"""One in five problems is held out."""
MOST_CHECKS = 6
"""Threads of the largest checking block."""


@dataclass(frozen=True, slots=True)
class ArithmeticOptions:
    """Ranges include both ends. All chains of a problem have the same number of steps; each has its own stride."""

    parts_min: int = 1
    parts_max: int = 5
    steps_min: int = 16
    steps_max: int = 24
    strides: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if not 1 <= self.parts_min <= self.parts_max <= len(ascii_lowercase):
            raise TaskError(f"task arithmetic needs 1 <= parts_min <= parts_max <= 26, got {self}")
        if not 1 <= self.steps_min <= self.steps_max:
            raise TaskError(f"task arithmetic needs 1 <= steps_min <= steps_max, got {self}")
        if not self.strides or not all(1 <= stride <= 9 for stride in self.strides):
            raise TaskError(f"task arithmetic needs strides of 1 to 9, got {self.strides}")


@dataclass(frozen=True, slots=True)
class Instance:
    """Start digit and stride of each chain, and the steps all of them take."""

    starts: tuple[int, ...]
    strides: tuple[int, ...]
    steps: int

    def split(self) -> Split:
        """By a hash of all but the first start, plus that start: of any ten problems that differ only there, two are
        held out. A plain hash could leave a side of the few one-part problems empty."""
        rest = hashed(f"arithmetic {self.starts[1:]} {self.strides} {self.steps}")
        return "heldout" if (rest + self.starts[0]) % HELDOUT_IN == 0 else "train"


@dataclass(frozen=True, slots=True)
class Surface:
    """How an instance is written: the one place to change it."""

    prompt: str
    names: tuple[str, ...]
    chains: tuple[str, ...]
    answer: str


def render(instance: Instance) -> Surface:
    """Two chains of three steps, the second in strides of two. A chain ends with its result under its capital letter,
    which is what the answer copies:

    >>> render(Instance(starts=(8, 1), strides=(1, 2), steps=3))
    Surface(prompt='a8,b1+2*3=', names=('a', 'b'), chains=('a8901A1', 'b1357B7'), answer='A1B7')
    """
    names = tuple(ascii_lowercase[: len(instance.starts)])
    parts = list(zip(names, instance.starts, instance.strides, strict=True))
    heads = [f"{name}{start}" + (f"+{stride}" if stride != 1 else "") for name, start, stride in parts]
    digits = [
        "".join(str((start + step * stride) % 10) for step in range(instance.steps + 1)) for _, start, stride in parts
    ]
    results = [f"{name.upper()}{run[-1]}" for name, run in zip(names, digits, strict=True)]
    chains = tuple(name + run + result for name, run, result in zip(names, digits, results, strict=True))
    return Surface(f"{','.join(heads)}*{instance.steps}=", names, chains, "".join(results))


class Arithmetic:
    """Chains of counting, in equal shares of every number of parts.

    One part has few different problems (starts x strides x steps), so problems repeat within a split; never across.
    """

    name = "arithmetic"
    forms: tuple[Form, ...] = ("sequential", "parallel", "checked")
    verifier: Verifier = exact_text

    def __init__(self, options: ArithmeticOptions) -> None:
        self.options = options

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """See Task. Any run of parts_max - parts_min + 1 problems, counted from the first, has each number of parts."""
        random = generator(self.name, split, count, seed)
        sizes = range(self.options.parts_min, self.options.parts_max + 1)
        found: list[Problem] = []
        for index, parts in zip(range(count), balanced(random, sizes), strict=False):
            instance = draw(lambda parts=parts: self._instance(random, parts), Instance.split, split)
            surface = render(instance)
            meta = {
                "starts": "".join(map(str, instance.starts)),
                "strides": "".join(map(str, instance.strides)),
                "steps": str(instance.steps),
            }
            name = f"{self.name}-{split}-{seed}-{index}"
            found.append(Problem(name, surface.prompt, surface.answer, parts, meta))
        return found

    def split(self, problem: Problem) -> list[str]:
        """A problem for each chain, under the name that the only chain of a problem has. 'a8,b1+2*3=': 'a8*3=' and
        'a1+2*3='."""
        chains, _, steps = problem.prompt.partition("*")
        return [f"{ascii_lowercase[0]}{chain[1:]}*{steps}" for chain in chains.split(",")]

    def merge(self, problem: Problem, answers: Sequence[str]) -> str:
        """What each chain ends with, under its own name again. 'A1' and 'A7': 'A1B7'."""
        return "".join(f"{name}{answer[1:]}" for name, answer in zip(ascii_uppercase, answers, strict=False))

    def demonstration(self, problem: Problem, form: Form) -> Demonstration:
        """See Task. Sequential: a line per chain; parallel: a thread per chain; checked: the lines, and then one to
        MOST_CHECKS threads that each say a chain's result again."""
        meta = problem.meta
        surface = render(Instance(_digits(meta["starts"]), _digits(meta["strides"]), int(meta["steps"])))
        lines = "".join(f"{chain}\n" for chain in surface.chains)
        if form == "sequential":
            return Demonstration((lines,), surface.answer)
        if form == "checked":
            count = Random(f"checks of {problem.id}").randint(1, MOST_CHECKS)
            checks = list(zip(surface.names, (chain[-2:] for chain in surface.chains), strict=True))
            return Demonstration((lines, Block(tuple(islice(cycle(checks), count)))), surface.answer)
        if len(surface.chains) == 1:
            raise TaskError(f"problem {problem.id} has one part: only the sequential form exists")
        alone = surface.prompt.partition("*")[0].split(","), surface.chains
        tasks = tuple((f"{head}*{meta['steps']}=", chain[-2:]) for head, chain in zip(*alone, strict=True))
        threads = tuple(zip(surface.names, surface.chains, strict=True))
        return Demonstration((Block(threads, tasks=tasks),), surface.answer)

    def _instance(self, random: Random, parts: int) -> Instance:
        starts = tuple(random.randrange(10) for _ in range(parts))
        strides = tuple(random.choice(self.options.strides) for _ in range(parts))
        return Instance(starts, strides, random.randint(self.options.steps_min, self.options.steps_max))


def _digits(text: str) -> tuple[int, ...]:
    return tuple(map(int, text))
