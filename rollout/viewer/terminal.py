"""Trajectories as text for a terminal of 80 columns: lanes of characters, then the tree with what each thread wrote."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from rollout.critical_path import counted, critical_segments, finish_times, measure
from rollout.shown import visible
from rollout.trajectory import Trajectory
from rollout.viewer.order import reading_order
from rollout.viewer.pieces import Decode
from rollout.viewer.recorded import Recorded

LABEL, LANE = 16, 62
"""Columns of a lane's name and of the lane."""
MARKS = {"prompt": "P", "sampled": "=", "forced": "+"}
CRITICAL, WAITS = "#", "."
LONGEST = 400
"""Characters of a segment's text before it is cut."""
DEEPEST = 6
"""Levels of nesting that are indented."""
Name = tuple[int, ...]


def print_trees(recorded: Sequence[Recorded], decode: Decode | None, console: Console) -> None:
    """One trajectory below the other. Nothing a model wrote reaches the terminal unescaped."""
    for number, each in enumerate(recorded, start=1):
        console.rule(Text(visible(f"{number} of {len(recorded)}: {each.trajectory.problem_id}")))
        for line in (*_head(each), *lanes(each.trajectory)):
            console.print(Text(line), soft_wrap=False)
        console.print(_tree(each.trajectory, decode))
    console.print(Text(f"{MARKS['sampled']} sampled  {MARKS['forced']} forced  {CRITICAL} critical  {WAITS} waits"))


def lane_name(name: Name) -> str:
    """`thread 1.2 / 1.1`: the first thread of the first block of thread 2 of the root's first block.

    >>> lane_name((0, 2, 0, 1))
    'thread 1.2 / 1.1'
    """
    pairs = [f"{block + 1}.{thread}" for block, thread in zip(name[::2], name[1::2], strict=False)]
    return f"thread {' / '.join(pairs)}" if pairs else "root"


def lanes(trajectory: Trajectory, columns: int = LANE) -> list[str]:
    """One line a thread: where on the axis of tokens it wrote, critical or not, and where it waited."""
    finish, critical = finish_times(trajectory), set(critical_segments(trajectory))
    length = max(max(finish, default=0), 1)
    found: dict[Name, list[str]] = {}
    for index, segment in enumerate(trajectory.segments):
        own = counted(segment)
        row = found.setdefault(segment.thread, [" "] * columns)
        first, end = ((at * columns) // length for at in (finish[index] - own, finish[index]))
        if own:
            mark = CRITICAL if index in critical else MARKS[segment.origin]
            first = min(first, columns - 1)
            row[first : max(end, first + 1)] = mark * (max(end, first + 1) - first)
    lines = [f"{'tokens':<{LABEL}}0{length:>{columns - 1}}"]
    for name in sorted(found):
        row = "".join(found[name])
        inner = row.strip(" ")
        line = row.replace(inner, inner.replace(" ", WAITS), 1) if inner else row
        indent = "  " * min(len(name) // 2, DEEPEST)
        short = " / ".join(lane_name(name).removeprefix("thread ").split(" / ")[-1:])
        lines.append(f"{(indent + short)[:LABEL]:<{LABEL}}{line}")
    return lines


def _head(recorded: Recorded) -> list[str]:
    lengths, trajectory = measure(recorded.trajectory), recorded.trajectory
    said = [f"step {recorded.step}", recorded.verdict, trajectory.outcome, trajectory.dialect]
    said += [f"{name} {value:.3f}" for name, value in _values(recorded) if value is not None]
    figures = f"L_critical {lengths.l_critical} of {lengths.l_total}, eta {lengths.eta:.3f}, threads {lengths.threads}"
    flaw = [f"flaw: {recorded.flaw}"] if recorded.flaw else []
    terms = [", ".join(f"{name} {value:+.3f}" for name, value in recorded.terms.items())] if recorded.terms else []
    return [visible(line) for line in (", ".join(said), figures, *terms, *flaw)]


def _values(recorded: Recorded) -> list[tuple[str, float | None]]:
    return [("reward", recorded.reward), ("advantage", recorded.advantage)]


def _tree(trajectory: Trajectory, decode: Decode | None) -> Tree:
    finish, critical = finish_times(trajectory), set(critical_segments(trajectory))
    root = Tree(Text("root"))
    nodes: dict[Name, Tree] = {(): root}
    for index in reading_order(trajectory):
        segment = trajectory.segments[index]
        name = segment.thread
        if name not in nodes:
            above = nodes.get(name[:-2], root) if len(name) // 2 <= DEEPEST else root
            nodes[name] = above.add(Text(lane_name(name)))
        start = finish[index] - counted(segment)
        when = f" {start}-{finish[index]}{' critical' if index in critical else ''}" if counted(segment) else ""
        head = f"{segment.origin}{when}: "
        text = decode(segment.ids) if decode else " ".join(map(str, segment.ids))
        text = text if len(text) <= LONGEST else f"{text[:LONGEST]} ... {len(text) - LONGEST} characters more"
        nodes[name].add(Text.assemble((head, "dim"), visible(text)))
    return root
