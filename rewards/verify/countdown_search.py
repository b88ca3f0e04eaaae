"""Verifies, step by step, the way to a Countdown target that a search trace restates at its end."""

import re
from dataclasses import dataclass

from rewards.verdict import Verdict
from rollout.search_trace import FULL, MAX_NUMBERS, ROOT, Line, Surface

_REFERENCE = re.compile(r"([0-9]{1,15}) from ([0-9]{1,15}(?: [0-9]{1,15})*)")
_LINES_A_STEP = 4
"""move, state, explore, and generate or goal."""


@dataclass(frozen=True)
class SearchVerifier:
    """`correct` when the trace ends with a legal way from the given numbers to the target that leaves no number over.

    The response is all that the root wrote and read; the reference is `<target> from <numbers>`. The way is what stands
    from the last `Operations: []` line to the end, in the very lines of the language:

        Moving to Node #0                                                  (SoS+ leaves this first move out)
        Current State: 62:[53, 22, 2], Operations: []                      all given numbers, in any order
        Exploring Operation: 53-22=31, Resulting Numbers: [2, 31]          both operands are there; the result is last
        Generated Node #0,1: 62:[2, 31] Operation: 53-22=31                a node below the one before
        Moving to Node #0,1
        Current State: 62:[2, 31], Operations: ['53-22=31']                the same numbers, all operations so far
        Exploring Operation: 31*2=62, Resulting Numbers: [62]
        62,62 equal: Goal Reached                                          one number is left, and it is the target

    A child's path counts where the root restates it as the end of its own. Operations are +, *, larger-smaller, and
    larger/smaller without remainder. `wrong`: such lines that break a rule, or `No solution found.` at the end.
    `unparsable`: anything else, a goal without the way to it included. The answer is the way, or the line of giving up.

    >>> terse = SearchVerifier(TERSE)
    >>> terse("62=62\\n>0\\n:62:31 2|\\n31*2=62:62\\n62=62\\n", "62 from 2 31"), terse("62=62\\n", "62 from 2 31")
    ('correct', 'unparsable')
    >>> terse.answer("62=62\\n>0\\n:62:31 2|\\n31*2=62:62\\n62=62\\n")
    ':62:31 2|\\n31*2=62:62\\n62=62'
    """

    surface: Surface = FULL

    def answer(self, response: str) -> str | None:
        way = _way(response, self.surface)
        lines = [Line("fail")] if way == [] else way or []
        return "".join(map(self.surface.write, lines)).removesuffix("\n") or None

    def __call__(self, response: str, reference: str) -> Verdict:
        asked = _REFERENCE.fullmatch(reference)
        if asked is None:
            return "error"
        target, numbers = int(asked[1]), sorted(map(int, asked[2].split(" ")))
        way = _way(response, self.surface)
        if way is None:
            return "unparsable"
        return "correct" if way and _reaches(way, target, numbers, self.surface) else "wrong"


countdown_search = SearchVerifier()


def _way(response: str, surface: Surface) -> list[Line] | None:
    """The lines from the last statement of the root on; [] for a search that gave up, None where there is no way."""
    texts = response.removesuffix("\n").rsplit("\n", _LINES_A_STEP * MAX_NUMBERS)
    lines: list[Line] = []
    for text in reversed(texts):
        line = surface.read(text)
        if line is None:
            return None
        if not lines and line.kind != "goal":
            return [] if line.kind == "fail" else None
        lines.insert(0, line)
        if line.kind == "state" and not line.operations:
            return lines
    return None


def _reaches(way: list[Line], target: int, numbers: list[int], surface: Surface) -> bool:
    """Whether these lines are one unbroken chain of legal steps from exactly these numbers to the target: takes the
    operations and the nodes' names from them, and compares with what the solver would have written."""
    left, node, done = way[0].numbers, ROOT, ()
    if sorted(left) != numbers:
        return False
    wanted = [Line("state", target=target, numbers=left)]
    generated = (line.node for line in way if line.kind == "generate")
    for explore in (line for line in way if line.kind == "explore"):
        if not _legal(explore, left):
            return False
        left, done = explore.numbers, (*done, explore.operation)
        wanted.append(explore)
        if len(left) > 1:
            node = (*node, *next(generated, ())[-1:])
            wanted.append(Line("generate", node, target, left, operation=explore.operation))
            wanted += [Line("move", node), Line("state", target=target, numbers=left, operations=done)]
    wanted.append(Line("goal", value=target, target=target))
    return left == (target,) and [*map(surface.write, way)] == [*map(surface.write, wanted)]


def _legal(explore: Line, left: tuple[int, ...]) -> bool:
    """Whether the operation takes two of the numbers left, computes rightly, and leaves the others and its result."""
    parts = re.split(r"([-+*/=])", explore.operation)
    a, sign, b, _, result = int(parts[0]), parts[1], int(parts[2]), parts[3], int(parts[4])
    others = list(left)
    for operand in (a, b):
        if operand not in others:
            return False
        others.remove(operand)
    *rest, last = explore.numbers
    right = {"+": a + b == result, "*": a * b == result, "-": a >= b and a - b == result}
    right["/"] = a >= b > 0 and b * result == a
    return right[sign] and last == result and sorted(rest) == sorted(others)
