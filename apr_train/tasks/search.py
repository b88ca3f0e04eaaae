"""APR's two symbolic solvers, which write the traces that a policy starts from: SoS+ in one text, APR with children.

Both are best-first searches that keep the `beam` nearest successors of a node, so they miss goals that a wider beam
would reach: a demonstration may end in `No solution found.`
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush
from itertools import combinations, pairwise
from random import Random

from apr_train.tasks.countdown import results
from rollout.search_trace import FULL, ROOT, Line, Node, SearchRun, State, Surface


@lru_cache(maxsize=1 << 12)
def _factors(target: int) -> tuple[int, ...]:
    return tuple(factor for factor in range(2, target + 1) if target % factor == 0) or (target,)


def heuristic(numbers: tuple[int, ...], target: int) -> int:
    """How far the numbers are from the target's factors (from 2 up, itself included), summed over the numbers.

    >>> heuristic((33, 2), 62)  # 31 and 2 divide 62
    2
    """
    return sum(min(abs(number - factor) for factor in _factors(target)) for number in numbers)


def successors(state: State) -> list[State]:
    """All that one legal operation leads to; the result comes last.

    >>> [after.operations for after in successors(State(62, (31, 2)))]
    [('31+2=33',), ('31*2=62',), ('31-2=29',)]
    """
    found: list[State] = []
    for i, j in combinations(range(len(state.numbers)), 2):
        rest = tuple(number for k, number in enumerate(state.numbers) if k not in (i, j))
        large, small = sorted((state.numbers[i], state.numbers[j]), reverse=True)
        for sign, value in results(large, small):
            operations = (*state.operations, f"{large}{sign}{small}={value}")
            found.append(State(state.target, (*rest, value), operations))
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """A node of the tree, and the one it was generated from."""

    node: Node
    state: State
    above: "Place | None" = None

    @property
    def distance(self) -> int:
        return heuristic(self.state.numbers, self.state.target)


class Search:
    """One text of a search: looks for the goal below a place, and writes down what it does.

    `nest`: the chance that successors are searched at once, inside this text; `promising`: that they become children,
    with `child_beam`. At most one of the two is above zero.
    """

    def __init__(
        self,
        random: Random,
        surface: Surface,
        beam: int,
        *,
        nest: float = 0.0,
        promising: float = 0.0,
        child_beam: int = 0,
    ) -> None:
        self.random, self.surface = random, surface
        self.beam, self.nest, self.promising, self.child_beam = beam, nest, promising, child_beam
        self.text = ""
        self.turns: list[str] = []
        self.spawns: list[tuple[Node, ...]] = []
        self.children: list[tuple[str, ...]] = []

    def run(self, start: Place, *, moving: bool = True) -> Place | None:
        """Searches below `start`, whose own lines are the prompt; ends with the way to the goal or with a failure."""
        goal = self._search(start, 0)
        if goal is None:
            self._write(Line("fail"))
        else:
            self._restate(start, goal, moving)
        return goal

    def _search(self, start: Place, level: int) -> Place | None:
        """The goal below `start`, if there is one in reach: pops `beam` places at a time, the nearest first."""
        queue: list[tuple[int, Node, Place]] = [(0, start.node, start)]
        while queue:
            for place in [heappop(queue)[-1] for _ in range(min(self.beam, len(queue)))]:
                if place is not start:
                    self._enter(place)
                below, goal = self._expand(place)
                if goal is None and below and self.random.random() < self.nest:
                    goal, below = self._nested(below, level + 1), []
                elif len(below) > 1 and self.random.random() < self.promising:
                    goal, below = self._spawn(below), []
                if goal is not None:
                    return goal
                for child in below:
                    heappush(queue, (child.distance, child.node, child))
        return None

    def _expand(self, place: Place) -> tuple[list[Place], Place | None]:
        """Tries the kept successors in a random order. Returns those that leave numbers to go on with, or the goal."""
        target = place.state.target
        kept = sorted(successors(place.state), key=lambda state: heuristic(state.numbers, target))[: self.beam]
        self.random.shuffle(kept)
        below: list[Place] = []
        for state in kept:
            child = Place((*place.node, len(below)), state, place)
            self._explore(child)
            if len(state.numbers) > 1:
                below.append(child)
            elif state.numbers == (target,):
                return [], child
        return below, None

    def _nested(self, below: Iterable[Place], level: int) -> Place | None:
        for place in sorted(below, key=lambda place: place.distance):
            self._write(Line("enter", place.node, index=level))
            self._state(place)
            if goal := self._search(place, level):
                return goal
            self._write(Line("leave", index=level))
            self._write(Line("barren"))
        return None

    def _spawn(self, below: Iterable[Place]) -> Place | None:
        """Ends a turn. The goal is the first child's that has one; all of them search to their end."""
        places = sorted(below, key=lambda place: place.distance)
        searches = [Search(self.random, self.surface, self.child_beam) for _ in places]
        goals = [search.run(place) for search, place in zip(searches, places, strict=True)]
        self.turns.append(self.text)
        self.spawns.append(tuple(place.node for place in places))
        self.children.append(tuple(search.text for search in searches))
        self.text = ""
        return next(filter(None, goals), None)

    def _restate(self, start: Place, goal: Place, moving: bool) -> None:
        """The way from the start of the search to its goal, once more and without detours."""
        way = [goal]
        while way[0].node != start.node:
            assert way[0].above is not None
            way.insert(0, way[0].above)
        for place, child in pairwise(way):
            if moving or place is not start:
                self._write(Line("move", place.node))
            self._state(place)
            self._explore(child)

    def _enter(self, place: Place) -> None:
        self._write(Line("move", place.node))
        self._state(place)

    def _state(self, place: Place) -> None:
        state = place.state
        self._write(Line("state", target=state.target, numbers=state.numbers, operations=state.operations))

    def _explore(self, child: Place) -> None:
        """The operation that leads to a place, and what it is: a node to go on from, the goal, or neither."""
        target, numbers, operation = child.state.target, child.state.numbers, child.state.operations[-1]
        value = numbers[-1]
        self._write(Line("explore", numbers=numbers, operation=operation))
        if len(numbers) > 1:
            self._write(Line("generate", child.node, target, numbers, operation=operation))
        else:
            self._write(Line("goal" if value == target else "dead", value=value, target=target))

    def _write(self, line: Line) -> None:
        self.text += self.surface.write(line)


def sos_plus(
    target: int, numbers: tuple[int, ...], random: Random, *, beam: int, nest: float = 0.5, surface: Surface = FULL
) -> str:
    """The trace of a search in one text, after `root_line(target, numbers, surface, moving=False)`.

    >>> sos_plus(62, (31, 2), Random(0), beam=1, surface=TERSE)
    '31*2=62:62\\n62=62\\n:62:31 2|\\n31*2=62:62\\n62=62\\n'
    """
    search = Search(random, surface, beam, nest=nest)
    search.run(Place(ROOT, State(target, numbers)), moving=False)
    return search.text


def apr(
    target: int,
    numbers: tuple[int, ...],
    random: Random,
    *,
    beam: int,
    child_beam: int,
    promising: float = 0.9,
    surface: Surface = FULL,
) -> SearchRun:
    """The texts of a search with children, after `root_line(target, numbers, surface)`.

    Where two successors or more of a node are kept, all of them become children with the chance `promising`. (The paper
    says 10 %, its published numbers fit 90 %.)

    >>> apr(62, (53, 22, 2), Random(0), beam=2, child_beam=2, surface=TERSE).spawns
    (((0, 0), (0, 1)),)
    """
    search = Search(random, surface, beam, promising=promising, child_beam=child_beam)
    search.run(Place(ROOT, State(target, numbers)))
    return SearchRun((*search.turns, search.text), tuple(search.spawns), tuple(search.children))
