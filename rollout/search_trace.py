"""The search language of APR (arXiv 2504.15466) as pure text: its lines, and what a client reads and writes in it.

A trace states nodes, tries operations and names what they lead to. A spawn block names nodes only: the client looks up
what the trace said of them and starts each child with that and nothing else. The full surface, then the terse one:

    Moving to Node #0                                               >0
    Current State: 62:[53, 22, 2], Operations: []                   :62:53 22 2|
    Exploring Operation: 53-22=31, Resulting Numbers: [2, 31]       53-22=31:2 31
    Generated Node #0,0: 62:[2, 31] Operation: 53-22=31             +0,0
    Exploring Operation: 31*2=62, Resulting Numbers: [62]           31*2=62:62
    62,62 equal: Goal Reached                                       62=62
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

Node = tuple[int, ...]
"""Where a node is in the tree: (0,) is the root, (0, 1) the root's second kept successor. Written `#0,1`."""
Searching = Literal["move", "state", "explore", "generate", "goal", "dead", "fail"]
Kind = Literal[Searching, "enter", "leave", "barren", "call", "failed", "reached"]
"""What a line says. enter, leave, barren: a search inside the same text (SoS+). call: a line of a spawn block; failed
and reached: lines of a join."""

TAGS = ("<Calling Sub Searches>", "<End Calling Sub Searches>", "<Sub Searches>", "<End Sub Searches>")
"""The structure, single tokens of the dialect. Every other line here is ordinary text."""
ROOT: Node = (0,)
MAX_CHILDREN = 32
MAX_NUMBERS = 8
"""Numbers of a state, operations of a state, and parts of a node's name after the first: a longer line is no line."""


@dataclass(frozen=True, slots=True)
class State:
    """What is on the table at a node, and how it came to be.

    >>> State(62, (2, 31), ("53-22=31",)).numbers
    (2, 31)
    """

    target: int
    numbers: tuple[int, ...]
    operations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One line in parts; a kind uses the parts that its template names. `index`: of a sub-search, or of a level."""

    kind: Kind
    node: Node = ()
    target: int = 0
    numbers: tuple[int, ...] = ()
    operations: tuple[str, ...] = ()
    operation: str = ""
    value: int = 0
    index: int = 0


_SMALL = "(?:0|[1-9][0-9]{0,2})"
_NUMBER = "(?:0|[1-9][0-9]{0,14})"
_OPERATION = f"{_NUMBER}[-+*/]{_NUMBER}={_NUMBER}"


def _series(item: str, separator: str) -> str:
    return f"{item}(?:{re.escape(separator)}{item}){{0,{MAX_NUMBERS - 1}}}"


@dataclass(frozen=True, eq=False)
class Surface:
    """How each kind of line is spelt: the only place that knows. Every text has one reading, every line one spelling.

    >>> FULL.write(Line("goal", value=62, target=62)), TERSE.write(Line("goal", value=62, target=62))
    ('62,62 equal: Goal Reached\\n', '62=62\\n')
    """

    name: str
    templates: Mapping[Kind, str]
    between: str
    """Between the numbers of a list, and between its operations."""
    quote: str
    """Around each operation of a list."""
    budgets: Mapping[str, str]
    _patterns: dict[Kind, re.Pattern[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        patterns = {kind: re.compile(self._pattern(template)) for kind, template in self.templates.items()}
        object.__setattr__(self, "_patterns", patterns)

    def write(self, line: Line) -> str:
        """The line's text with its newline."""
        parts = {
            "node": ",".join(map(str, line.node)),
            "numbers": self.between.join(map(str, line.numbers)),
            "operations": self.between.join(f"{self.quote}{operation}{self.quote}" for operation in line.operations),
        }
        rest = {part.name: str(getattr(line, part.name)) for part in fields(Line) if part.name not in parts}
        return self.templates[line.kind].format(**parts, **rest) + "\n"

    def read(self, text: str) -> Line | None:
        """What a line without its newline says; None when it is none of ours. Takes time linear in the text.

        >>> TERSE.read("31*2=62:62") == Line("explore", numbers=(62,), operation="31*2=62")
        True
        """
        for kind, pattern in self._patterns.items():
            if match := pattern.fullmatch(text):
                return self._line(kind, match)
        return None

    def tail(self, kind: Kind, text: str) -> Line | None:
        """The same for a line of one kind with something before it: a bos, a budget."""
        match = re.search(f"{self._patterns[kind].pattern}\\Z", text)
        return self._line(kind, match) if match else None

    def _line(self, kind: Kind, match: re.Match[str]) -> Line:
        found = match.groupdict("")
        operations = found.get("operations", "").replace(self.quote, "") if self.quote else found.get("operations", "")
        return Line(
            kind,
            node=tuple(map(int, found["node"].split(","))) if "node" in found else (),
            target=int(found.get("target", 0)),
            numbers=tuple(map(int, found["numbers"].split(self.between))) if "numbers" in found else (),
            operations=tuple(operations.split(self.between)) if operations else (),
            operation=found.get("operation", ""),
            value=int(found.get("value", 0)),
            index=int(found.get("index", 0)),
        )

    def _pattern(self, template: str) -> str:
        quoted = f"{self.quote}{_OPERATION}{self.quote}"
        parts = {
            "node": _series(_SMALL, ","),
            "target": _NUMBER,
            "numbers": _series(_NUMBER, self.between),
            "operations": f"(?:{_series(quoted, self.between)})?",
            "operation": _OPERATION,
            "value": _NUMBER,
            "index": _SMALL,
        }
        words = re.split(r"\{(\w+)\}", template)  # text, part, text, part, ..., text
        return "".join(f"(?P<{word}>{parts[word]})" if k % 2 else re.escape(word) for k, word in enumerate(words))


FULL = Surface(
    "full",
    {
        "move": "Moving to Node #{node}",
        "state": "Current State: {target}:[{numbers}], Operations: [{operations}]",
        "explore": "Exploring Operation: {operation}, Resulting Numbers: [{numbers}]",
        "generate": "Generated Node #{node}: {target}:[{numbers}] Operation: {operation}",
        "goal": "{value},{target} equal: Goal Reached",
        "dead": "{value},{target} unequal: No Solution",
        "fail": "No solution found.",
        "enter": "Start Sub Search at level {index}: Moving to Node #{node}",
        "leave": "Exit Sub Search at level {index}",
        "barren": "No solution found in sub search",
        "call": "<Start Sub Search {index} at level 1> Moving to Node #{node}",
        "failed": "<No Solution in Sub Search {index} at level 1 at Node #{node}>",
        "reached": "<Goal Reached in Sub Search {index} at level 1 at Node #{node}>",
    },
    between=", ",
    quote="'",
    budgets={"sub_calls": "Sub Call Budget: {} ", "tokens": "Token Budget: {} "},
)
"""The paper's own words, for tokenizers with words."""
TERSE = Surface(
    "terse",
    {
        "move": ">{node}",
        "state": ":{target}:{numbers}|{operations}",
        "explore": "{operation}:{numbers}",
        "generate": "+{node}",  # of the operation just explored
        "goal": "{value}={target}",
        "dead": "{value}!{target}",
        "fail": "-",
        "enter": "({node}",
        "leave": ")",
        "barren": ")-",
        "call": "{index}>{node}",
        "failed": "{index}-{node}",
        "reached": "{index}+{node}",
    },
    between=" ",
    quote="",
    budgets={"sub_calls": "c{} ", "tokens": "t{} "},
)
"""The same lines in a few characters each, for tiny models that read characters; a line repeats nothing of the one
before it."""
SURFACES: dict[str, Surface] = {surface.name: surface for surface in (FULL, TERSE)}


@dataclass(frozen=True, slots=True)
class SearchRun:
    """A search as the policy writes it: the parent's text up to each spawn and after the last; per spawn the nodes, and
    what each child writes after the prompt that the client gives it. What the client writes is not in it.

    >>> run = SearchRun(("53-22=31:2 31\\n+0,0\\n", "-\\n"), (((0, 0),),), (("31+2=33:33\\n33!62\\n-\\n",),))
    >>> run.transcript(TERSE)
    '53-22=31:2 31\\n+0,0\\n<Sub Searches>\\n0-0,0\\n<End Sub Searches>\\n-\\n'
    """

    turns: tuple[str, ...]
    spawns: tuple[tuple[Node, ...], ...] = ()
    children: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not len(self.turns) - 1 == len(self.spawns) == len(self.children):
            raise ValueError(f"{len(self.turns)} turns around {len(self.spawns)} spawns and {len(self.children)} joins")
        if [len(nodes) for nodes in self.spawns] != [len(texts) for texts in self.children]:
            raise ValueError("a spawn has not as many nodes as children")

    def transcript(self, surface: Surface = FULL) -> str:
        """What the parent has read and written in the end, without its prompt: each join in the place of its spawn."""
        text = self.turns[0]
        for nodes, children, turn in zip(self.spawns, self.children, self.turns[1:], strict=True):
            join = render_join(nodes, [child_return(child, surface) for child in children], surface)
            text += f"{TAGS[2]}{join}{TAGS[3]}\n{turn}"
        return text


def root_line(target: int, numbers: Sequence[int], surface: Surface = FULL, *, moving: bool = True) -> str:
    """How a trace starts; a SoS+ trace starts without the move.

    >>> root_line(62, [53, 22, 4, 2])
    'Moving to Node #0\\nCurrent State: 62:[53, 22, 4, 2], Operations: []\\n'
    """
    prompt = child_prompt(ROOT, State(target, tuple(numbers)), surface)
    return prompt if moving else prompt.partition("\n")[2]


def child_prompt(node: Node, state: State, surface: Surface = FULL) -> str:
    """All that a child reads: its node's own start lines.

    >>> child_prompt((0, 1), State(62, (4, 2, 31), ("53-22=31",)))
    "Moving to Node #0,1\\nCurrent State: 62:[4, 2, 31], Operations: ['53-22=31']\\n"
    """
    stated = Line("state", target=state.target, numbers=state.numbers, operations=state.operations)
    return surface.write(Line("move", node)) + surface.write(stated)


def node_of(prompt: str, surface: Surface = FULL) -> Node:
    """The node a child was started at; a bos or a chat template may stand around. ValueError when there is none.

    >>> node_of("<s>Moving to Node #0,1\\nCurrent State: 62:[4, 2, 31], Operations: ['53-22=31']\\n")
    (0, 1)
    """
    for text in prompt.split("\n"):
        if line := surface.tail("move", text):
            return line.node
    raise ValueError(f"this prompt starts no search: {prompt[:60]!r}")


def budget_prefix(kind: Literal["sub_calls", "tokens"], k: int, surface: Surface = FULL) -> str:
    """What conditions a policy on compute, before everything else.

    >>> budget_prefix("sub_calls", 10), budget_prefix("tokens", 512, TERSE)
    ('Sub Call Budget: 10 ', 't512 ')
    """
    return surface.budgets[kind].format(k)


def states(trace: str, surface: Surface = FULL) -> dict[Node, State]:
    """Every node that a trace states or generates, as it last told it. Lines that say neither are passed over.

    >>> states(":62:53 22 2|\\n53-22=31:2 31\\n+0,0\\n", TERSE)[(0, 0)]
    State(target=62, numbers=(2, 31), operations=('53-22=31',))
    """
    known: dict[Node, State] = {}
    here, explored = ROOT, Line("explore")
    for text in trace.split("\n"):
        line = surface.read(text)
        if line is None and ROOT not in known:
            line = surface.tail("state", text)
        match line:
            case Line("move" | "enter"):
                here = line.node
            case Line("state"):
                known[here] = State(line.target, line.numbers, line.operations)
            case Line("explore"):
                explored = line
            case Line("generate") if parent := known.get(line.node[:-1]):
                numbers, operation = line.numbers or explored.numbers, line.operation or explored.operation
                if numbers and operation and len(parent.operations) < MAX_NUMBERS:
                    operations = (*parent.operations, operation)
                    known[line.node] = State(line.target or parent.target, numbers, operations)
            case _:
                pass
    return known


def resolve_spawn(spawn_text: str, trace: str, surface: Surface = FULL) -> list[str] | str:
    """The prompts of the children that a spawn block asks for, or why it cannot be: whatever the texts are, no error.

    `spawn_text` stands between `<Calling Sub Searches>` and `<End Calling Sub Searches>`; `trace` is all that the
    parent read and wrote before, its prompt and its joins included. Takes time linear in both.

    >>> resolve_spawn("\\n0>0,0\\n", ":62:53 22 2|\\n53-22=31:2 31\\n+0,0\\n", TERSE)
    ['>0,0\\n:62:2 31|53-22=31\\n']
    >>> resolve_spawn("\\n0>0,7\\n", ":62:53 22 2|\\n53-22=31:2 31\\n+0,0\\n", TERSE)
    'a spawn of node #0,7, which the trace does not know'
    """
    body = spawn_text.removeprefix("\n").removesuffix("\n")
    if not body:
        return "a spawn block without lines"
    if body.count("\n") >= MAX_CHILDREN:
        return f"a spawn block of more than {MAX_CHILDREN} lines"
    nodes: list[Node] = []
    for index, text in enumerate(body.split("\n")):
        line = surface.read(text)
        if line is None or line.kind != "call":
            return f"line {index} of a spawn block starts no sub search"
        if line.index != index:
            return f"sub search {index} of a spawn block is numbered {line.index}"
        if line.node in nodes:
            return f"a spawn of node #{','.join(map(str, line.node))} twice"
        nodes.append(line.node)
    known = states(trace, surface)
    for node in nodes:
        if node not in known:
            return f"a spawn of node #{','.join(map(str, node))}, which the trace does not know"
    return [child_prompt(node, known[node], surface) for node in nodes]


def render_spawn(nodes: Sequence[Node], surface: Surface = FULL) -> str:
    """What stands between the tags of a spawn block.

    >>> render_spawn([(0, 1)])
    '\\n<Start Sub Search 0 at level 1> Moving to Node #0,1\\n'
    """
    return "\n" + "".join(surface.write(Line("call", node, index=index)) for index, node in enumerate(nodes))


def render_return(index: int, node: Node, found: bool, surface: Surface = FULL) -> str:
    """What a join says of one child, without the path that follows when it `found` one. Starts a new line.

    >>> render_return(0, (0, 1), False), render_return(0, (0, 1), True, TERSE)
    ('\\n<No Solution in Sub Search 0 at level 1 at Node #0,1>', '\\n0+0,1\\n')
    """
    text = surface.write(Line("reached" if found else "failed", node, index=index))
    return "\n" + (text if found else text.removesuffix("\n"))


def render_join(nodes: Sequence[Node], returns: Sequence[str | None], surface: Surface = FULL) -> str:
    """What stands between `<Sub Searches>` and `<End Sub Searches>`: a line per child, and the path of each that has
    one.

    >>> render_join([(0, 0), (0, 1)], [None, ">0,1\\n...\\n62=62"], TERSE)
    '\\n0-0,0\\n1+0,1\\n>0,1\\n...\\n62=62\\n'
    """
    parts = [
        render_return(index, node, path is not None, surface) + (path or "")
        for index, (node, path) in enumerate(zip(nodes, returns, strict=True))
    ]
    return "".join(parts) + "\n"


def child_return(text: str, surface: Surface = FULL) -> str | None:
    """What a child gives back: all after its second-to-last goal line, without the last newline. None with fewer than
    two: a search that reaches its goal says so, then restates the way to it, which says so again.

    >>> child_return("31*2=62:62\\n62=62\\n>0,0\\n:62:2 31|53-22=31\\n31*2=62:62\\n62=62\\n", TERSE)
    '>0,0\\n:62:2 31|53-22=31\\n31*2=62:62\\n62=62'
    """
    lines = text.removesuffix("\n").split("\n")
    goals = [k for k, line in enumerate(lines) if (read := surface.read(line)) and read.kind == "goal"]
    return "\n".join(lines[goals[-2] + 1 :]) if len(goals) > 1 else None
