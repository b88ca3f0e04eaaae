r"""APR's published rows: a run as `trace_dict`, or every parent snapshot and every child as a text of its own.

    snapshot  Moving to Node #0\nCurrent State: ..\n .. <Calling Sub Searches>\n<Start ..\n<End Calling Sub Searches>\n
    child     Moving to Node #0,1\nCurrent State: ..\n .. its search
    the next  the same up to the spawn, <Sub Searches>\n<No Solution in ..>\n<End Sub Searches>\n, then on

The first two lines are the prompt, a budget before them included. A run is taken only when the client of
`rollout/search_trace.py` would have written the very same children's prompts and the very same joins.
"""

import json
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from apr_train.corpora.base import Drop, Refused, Worked, find_text, unicode
from rollout.search_trace import (
    FULL,
    ROOT,
    TAGS,
    Node,
    SearchRun,
    child_return,
    node_of,
    render_join,
    render_return,
    resolve_spawn,
    states,
)

CALLING, END_CALLING, SUBS, END_SUBS = TAGS
_PROMPT = re.compile(r"(?:Sub Call Budget: [0-9]{1,4} )?Moving to Node #[0-9,]{1,60}\nCurrent State: [^\n]{1,1000}\n")
Row = tuple[str, Mapping[str, Any]]


def read(row: Mapping[str, Any]) -> Worked | Drop:
    """A row of `trace_dict` ({main_calls, sub_calls}, or its JSON), as the published generator writes it."""
    try:
        snapshots, children = _run_of(row)
        prompt = _prompt_of(snapshots[0])
        if len(children) != len(snapshots) - 1:
            return Drop.CHILDREN
        seen, turns, spawns = prompt, list[str](), list[tuple[Node, ...]]()
        written: list[tuple[str, ...]] = []
        for snapshot, texts in zip(snapshots[:-1], children, strict=True):
            turn, nodes, prompts = _spawn(snapshot, seen)
            if len(texts) != len(nodes) or not all(map(str.startswith, texts, prompts)):
                return Drop.CHILDREN
            own = tuple(text[len(start) :] for text, start in zip(texts, prompts, strict=True))
            if any(tag in text for text in own for tag in TAGS):
                return Drop.TOO_DEEP
            join = render_join(nodes, [child_return(text, FULL) for text in own], FULL)
            seen += f"{turn}{SUBS}{join}{END_SUBS}\n"
            turns, spawns, written = [*turns, turn], [*spawns, nodes], [*written, own]
        if not snapshots[-1].startswith(seen) or any(tag in snapshots[-1][len(seen) :] for tag in TAGS):
            return Drop.SNAPSHOTS
        run = SearchRun((*turns, snapshots[-1][len(seen) :]), tuple(spawns), tuple(written))
        return Worked(prompt, _reference(prompt), run)
    except Refused as refused:
        return refused.reason


def _run_of(row: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The parent's snapshots in order and, per spawn, the children's texts."""
    trace: Any = row.get("trace_dict")
    if isinstance(trace, str):
        try:
            trace = json.loads(trace)
        except (ValueError, RecursionError):
            trace = None
    if not isinstance(trace, Mapping):
        raise Refused(Drop.NO_TEXT if find_text(row, "text") is None else Drop.ORPHAN)
    snapshots, spawns = _texts(cast(Any, trace).get("main_calls")), cast(Any, trace).get("sub_calls")
    if not snapshots or not isinstance(spawns, Sequence) or isinstance(spawns, str):
        raise Refused(Drop.NO_TEXT)
    return snapshots, [[_child(child) for child in _list(spawn)] for spawn in cast(Sequence[Any], spawns)]


def _child(child: Any) -> str:
    """A child's only text. A child that has children is deeper than the language goes."""
    if isinstance(child, Mapping):
        if _list(cast(Any, child).get("sub_calls")):
            raise Refused(Drop.TOO_DEEP)
        child = (_texts(cast(Any, child).get("main_calls")) or [None])[-1]
    if not isinstance(child, str):
        raise Refused(Drop.CHILDREN)
    return _bare(child)


def _texts(value: Any) -> list[str]:
    texts = _list(value)
    if not all(isinstance(text, str) for text in texts):
        raise Refused(Drop.NO_TEXT)
    return [_bare(text) for text in texts]


def _list(value: Any) -> list[Any]:
    return list(cast(Sequence[Any], value)) if isinstance(value, Sequence) and not isinstance(value, str) else []


def _bare(text: str) -> str:
    """Without Llama's bos and eos."""
    return unicode(text.removeprefix("<s>").removesuffix("</s>").lstrip(" "))


def _prompt_of(snapshot: str) -> str:
    found = _PROMPT.match(snapshot)
    if found is None or _node(found[0]) != ROOT or ROOT not in states(found[0]):
        raise Refused(Drop.NO_ROOT)
    return found[0]


def _node(prompt: str) -> Node | None:
    try:
        return node_of(prompt)
    except ValueError:
        return None


def _spawn(snapshot: str, seen: str) -> tuple[str, tuple[Node, ...], list[str]]:
    """What the parent wrote before a spawn, the nodes it spawned, and the prompts of their searches."""
    if not snapshot.startswith(seen):
        raise Refused(Drop.SNAPSHOTS)
    turn, _, block = snapshot[len(seen) :].partition(CALLING)
    block, found, after = block.partition(END_CALLING)
    if not found or after.strip() or any(tag in part for part in (turn, block) for tag in TAGS):
        raise Refused(Drop.SNAPSHOTS)
    prompts = resolve_spawn(block, seen + turn, FULL)
    if isinstance(prompts, str):
        raise Refused(Drop.SPAWN)
    return turn, tuple(map(node_of, prompts)), prompts


def _reference(prompt: str) -> str:
    """`62 from 53 22 4 2`, what the verifier of search traces compares with."""
    root = states(prompt)[ROOT]
    return f"{root.target} from {' '.join(map(str, root.numbers))}"


def runs_of(rows: Iterable[Row]) -> Iterator[Row]:
    """Puts texts that stand in rows of their own (column `text`) together to runs; other rows pass as they are.

    A parent text that ends without spawn names its run. Its snapshots are the texts that end in a spawn where it has a
    join; its children are those that start as that spawn says and return what that join tells, the first such text
    that no earlier run took. What is left over comes last, each text a row of its own, which `read` drops.
    """
    finals: list[tuple[str, str]] = []
    snapshots: dict[str, tuple[str, str]] = {}
    children: dict[str, deque[tuple[str, str]]] = defaultdict(deque)
    for where, row in rows:
        text = row.get("text")
        if "trace_dict" in row or not isinstance(text, str):
            yield where, row
            continue
        bare = text.removeprefix("<s>").removesuffix("</s>").lstrip(" ")
        prompt = _PROMPT.match(bare)
        if prompt and _node(prompt[0]) not in (None, ROOT):
            children[prompt[0]].append((where, bare))
        elif bare.rstrip().endswith(END_CALLING):
            snapshots.setdefault(bare.rpartition(CALLING)[0], (where, bare))
        else:
            finals.append((where, bare))
    used: set[str] = set()
    for where, final in finals:
        main, subs = _assemble(final, snapshots, children, used)
        yield where, {"trace_dict": {"main_calls": [*main, final], "sub_calls": subs}}
    for where, text in snapshots.values():
        if where not in used:
            yield where, {"text": text}
    for left in children.values():
        for where, text in left:
            yield where, {"text": text}


def _assemble(
    final: str, snapshots: Mapping[str, tuple[str, str]], children: Mapping[str, deque[tuple[str, str]]], used: set[str]
) -> tuple[list[str], list[list[str]]]:
    """The snapshots and children that a parent's last text tells of, as far as they are there."""
    main: list[str] = []
    subs: list[list[str]] = []
    start = final.find(SUBS)
    while start >= 0 and final[:start] in snapshots:
        where, snapshot = snapshots[final[:start]]
        used.add(where)
        main.append(snapshot)
        block = snapshot[start + len(CALLING) :].partition(END_CALLING)[0]
        prompts = resolve_spawn(block, final[:start], FULL)
        at = start + len(SUBS)
        subs.append([])
        for index, prompt in enumerate(prompts if isinstance(prompts, list) else []):
            child, told = _take(children, prompt, index, final, at)
            if child is None:
                break
            subs[-1].append(child)
            at += told
        start = final.find(SUBS, at)
    return main, subs


def _take(
    children: Mapping[str, deque[tuple[str, str]]], prompt: str, index: int, final: str, at: int
) -> tuple[str | None, int]:
    """The first text for a child's prompt whose return stands at `at` in the parent, and how long that is."""
    waiting = children.get(prompt, deque())
    for k, (_, text) in enumerate(waiting):
        path = child_return(text[len(prompt) :], FULL)
        told = render_return(index, node_of(prompt), path is not None, FULL) + (path or "")
        if final.startswith(told, at):
            del waiting[k]
            return text, len(told)
    return None, 0
