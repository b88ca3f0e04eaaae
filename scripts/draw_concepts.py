"""Draws the pictures of docs/concepts.md from real objects: `python scripts/draw_concepts.py` writes docs/img/*.svg.

Nothing in a picture is put there by hand. A demonstration goes through a real dialect and the real orchestrator; its
lengths come from `measure`, what tokens see from the packed trie or from `sight`, which training uses.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from apr_train.chains import trie_chains
from apr_train.model import character_tokenizer
from apr_train.packing import PackedTrie, pack
from apr_train.visibility import sight
from rollout.critical_path import measure
from rollout.demonstration import Block, Demonstration
from rollout.dialects import dialect_class, make_dialect
from rollout.engines.replay import ReplayEngine
from rollout.orchestrator import Budget, run_trajectory
from rollout.tokens import Tokens, register_tags
from rollout.trajectory import Segment, Trajectory

FOLDER = Path(__file__).resolve().parent.parent / "docs/img"
SHOWN = Demonstration((Block((("a", "a345"), ("b", "b67")), tasks=(("a", "5"), ("b", "7"))),), "57")
"""Count from a and from b, each in a thread of its own; the answer has the two ends."""
JOINS = {"transcript": "parallel_r1", "stitched": "parallel_r1", "message": "recursive"}
"""Each join rule, in a dialect that has it and few tags."""

CELL = 18  # pixels a token
INK, PALE, LINE = "#1f2933", "#eef1f5", "#9aa5b1"
ORIGINS = {"prompt": "#b8c2cc", "sampled": "#7db3e8", "forced": "#f4b860"}
THREADS = ("#7db3e8", "#8ccf9f", "#e59ab8", "#c4a7e7")
"""The root's colour, then that of thread 1, 2, ..."""
SYMBOLS = {"\n": "\u21b5", " ": "\u2423", "<|eos|>": "eos"}


class Svg:
    """A picture that is written shape by shape; the same shapes give the same bytes."""

    def __init__(self, title: str) -> None:
        self.title, self.shapes = title, list[str]()
        self.width = self.height = 0.0

    def _reach(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)

    def rect(self, x: float, y: float, w: float, h: float, fill: str, line: str = "none", hint: str = "") -> None:
        inside = f"<title>{escape(hint)}</title>" if hint else ""
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" stroke="{line}">{inside}</rect>'
        )
        self._reach(x + w, y + h)

    def text(self, x: float, y: float, text: str, size: float = 12, anchor: str = "start", fill: str = INK) -> None:
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}" '
            f'xml:space="preserve">{escape(text)}</text>'
        )
        wide = 0.62 * size * len(text)
        self._reach(x + (wide if anchor == "start" else wide / 2 if anchor == "middle" else 0), y + size / 2)

    def line(self, *points: tuple[float, float], stroke: str = LINE, wide: float = 1.5) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.shapes.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{wide:g}"/>')
        for x, y in points:
            self._reach(x, y)

    def cell(self, x: float, y: float, token: str, fill: str, line: str = "white") -> None:
        """One token: a character as it is, a tag by its first letters, with the whole of it as a hint."""
        self.rect(x, y, CELL, CELL, fill, line, token)
        self.text(x + CELL / 2, y + 12.5, symbol(token), 8 if len(symbol(token)) > 1 else 12, "middle")

    def written(self) -> str:
        """The whole file."""
        w, h = self.width + 10, self.height + 10
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:g} {h:g}" width="{w:g}" height="{h:g}" '
            f'role="img" font-family="ui-monospace, Menlo, Consolas, monospace">\n<title>{escape(self.title)}</title>\n'
            f'<rect width="{w:g}" height="{h:g}" fill="white"/>\n'
        )
        return head + "\n".join(self.shapes) + "\n</svg>\n"


def symbol(token: str) -> str:
    """What of a token fits into its cell: of a tag some letters.

    >>> symbol("<Parallel>"), symbol("<Path>"), symbol("</Path>"), symbol("a"), symbol("1:")
    ('Pal', 'Pah', '/Ph', 'a', '1:')
    """
    if token in SYMBOLS:
        return SYMBOLS[token]
    if len(token) > 2 and token.startswith("<"):
        return f"{token[1:3]}{token[-2]}"
    return token


def sampled(dialect_name: str, join: str) -> tuple[Trajectory, Tokens]:
    """The demonstration as the orchestrator records it in a dialect, under a join rule."""
    tokenizer = character_tokenizer()
    register_tags(tokenizer, dialect_class(dialect_name).tags())
    tokens = Tokens(tokenizer)
    dialect = make_dialect(dialect_name, tokens, join)
    engine = ReplayEngine(dialect.write(SHOWN), max_context=1000)
    budget = Budget(response=500, answer=10, threads=4, blocks=4)
    return asyncio.run(run_trajectory(engine, dialect, "shown", tokens.prompt("ab"), budget)), tokens


def colour(segment: Segment) -> str:
    """Of the thread that a segment belongs to; the prompt is grey."""
    return ORIGINS["prompt"] if segment.origin == "prompt" else THREADS[segment.number]


def legend(svg: Svg, x: float, y: float, texts: Sequence[str]) -> None:
    """What the letters in the cells stand for, four tags a line."""
    tags = [text for text in dict.fromkeys(texts) if symbol(text) != text and text not in SYMBOLS]
    for at in range(0, len(tags), 4):
        svg.text(x, y + 14 * (at // 4), "   ".join(f"{symbol(t)} = {t}" for t in tags[at : at + 4]), 10)


# ---- fork and join


def fork_join() -> str:
    """A trajectory in time: a token a column, a thread a row, the critical path underlined."""
    trajectory, tokens = sampled("threadweaver", "transcript")
    svg, left, top, row = Svg("A fork, two threads and a join"), 80, 40, 62
    ends = list[int]()
    for segment in trajectory.segments:
        ends.append(len(segment.ids) + max((ends[parent] for parent in segment.parents), default=0))
    begins = [end - len(segment.ids) for end, segment in zip(ends, trajectory.segments, strict=True)]
    critical = longest_path(trajectory, ends)

    def x(position: int) -> float:
        return left + CELL * position

    def y(segment: Segment) -> float:
        return top + row * segment.number

    for lane in sorted({s.number for s in trajectory.segments}):
        svg.text(8, top + row * lane + 12, f"thread {lane}" if lane else "root", 11)
    edges = [(parent, index) for index, segment in enumerate(trajectory.segments) for parent in segment.parents]
    for parent, index in sorted(edges, key=critical.issuperset):  # the red ones last, on top
        before, after = trajectory.segments[parent], trajectory.segments[index]
        if before.thread != after.thread:
            bend = [(x(ends[parent]), y(before) + CELL), (x(begins[index]), y(before) + CELL)]
            colour_of_edge = "#d64545" if critical.issuperset((parent, index)) else LINE
            svg.line(*bend, (x(begins[index]), y(after) + CELL), stroke=colour_of_edge)
    for index, segment in enumerate(trajectory.segments):
        for k, token in enumerate(segment.ids):
            svg.cell(x(begins[index] + k), y(segment), tokens.decode((token,)), ORIGINS[segment.origin])
        if index in critical and segment.origin != "prompt":
            svg.line((x(begins[index]), y(segment) + 21), (x(ends[index]), y(segment) + 21), stroke="#d64545", wide=3)
    lengths, below = measure(trajectory), top + 3 * row
    for at, (origin, fill) in enumerate(ORIGINS.items()):
        svg.rect(left + 110 * at, below, CELL, CELL, fill, "white")
        svg.text(left + 110 * at + 22, below + 12, origin, 11)
    svg.line((left + 330, below + 8), (left + 355, below + 8), stroke="#d64545", wide=3)
    svg.text(left + 362, below + 12, "critical path", 11)
    counted = f"L_total {lengths.l_total}   L_critical {lengths.l_critical}   eta {lengths.eta:.3f}"
    svg.text(left, 22, f"tokens, left to right in the order they can be had:   {counted}", 12)
    legend(svg, left, below + 40, [tokens.decode((t,)) for s in trajectory.segments for t in s.ids])
    return svg.written()


def longest_path(trajectory: Trajectory, ends: Sequence[int]) -> set[int]:
    """Segments of the longest chain, from its end back to the prompt."""
    at = max(range(len(ends)), key=lambda index: ends[index])
    chain = {at}
    while trajectory.segments[at].parents:
        at = max(trajectory.segments[at].parents, key=lambda parent: ends[parent])
        chain.add(at)
    return chain


# ---- who sees whom


@dataclass(frozen=True)
class Sights:
    """What a trajectory's tokens see when they are trained: one row and one column for each packed position.

    `owners`: (segment, offset) of each position; `positions`: its position id; `sees[i]`: the places that place i sees,
    its own included.
    """

    owners: list[tuple[int, int]]
    positions: list[int]
    sees: list[set[int]]


def sights(trajectory: Trajectory) -> Sights:
    """Of a stitched trajectory each segment once, by `sight`; of any other the trie of its calls' rows."""
    if trajectory.attention == "stitched":
        found = sight(trajectory)
        owners = [(s, k) for s, segment in enumerate(trajectory.segments) for k in range(len(segment.ids))]
        sees = [{j for j, (t, m) in enumerate(owners) if t in found.sees[s] or (t == s and m <= k)} for s, k in owners]
        return Sights(owners, [found.starts[s] + k for s, k in owners], sees)
    trie = packed(trajectory)
    owner: dict[int, tuple[int, int]] = {}
    for call, where in zip(trajectory.calls, trie.where, strict=True):
        row = [(s, k) for s in (*call.context, call.sampled) for k in range(len(trajectory.segments[s].ids))]
        owner.update((place, token) for place, token in zip(where.tolist(), row, strict=False) if place not in owner)
    sees = [set[int]() for _ in range(trie.unique_tokens)]
    for chain in trie_chains(trie.segments):
        before = {place for start, end in chain.prefix for place in range(start, end)}
        for place in range(chain.start, chain.end):
            sees[place] = before | set(range(chain.start, place + 1))
    return Sights([owner[place] for place in range(len(sees))], trie.position_ids.tolist(), sees)


def packed(trajectory: Trajectory) -> PackedTrie:
    """The rows of a trajectory whose calls read flat text, as the trainer packs them."""
    rows = list(trajectory.rows())
    return pack([[*context, *ids] for context, ids, _ in rows], [len(context) for context, _, _ in rows])


def mask(join: str) -> str:
    """Who sees whom under a join rule: a row looks at the filled columns."""
    trajectory, tokens = sampled(JOINS[join], join)
    seen = sights(trajectory)
    texts = [tokens.decode((trajectory.segments[s].ids[k],)) for s, k in seen.owners]
    fills = [colour(trajectory.segments[s]) for s, _ in seen.owners]
    svg, left, top = Svg(f"Attention under the {join} join"), 74, 62
    svg.text(8, 20, f"{join} join, dialect {JOINS[join]}: {len(texts)} positions", 12)
    svg.text(8, 40, "position", 10)
    for i, (text, fill) in enumerate(zip(texts, fills, strict=True)):
        svg.cell(left + CELL * i, top - 22, text, fill)
        svg.cell(left - 22, top + CELL * i, text, fill)
        svg.text(left - 28, top + CELL * i + 12, str(seen.positions[i]), 9, "end")
        for j in range(len(texts)):
            filled = fills[j] if j in seen.sees[i] else PALE
            svg.rect(left + CELL * j, top + CELL * i, CELL, CELL, filled, "white")
    below = top + CELL * len(texts) + 14
    names = ("prompt", "root", "thread 1", "thread 2")
    for at, (name, fill) in enumerate(zip(names, (ORIGINS["prompt"], *THREADS), strict=False)):
        svg.rect(left + 96 * at, below, CELL, CELL, fill, "white")
        svg.text(left + 96 * at + 22, below + 12, name, 11)
    legend(svg, left, below + 38, texts)
    return svg.written()


# ---- packing


def trie() -> str:
    """One row per call above, the trie that they are packed into below."""
    trajectory, tokens = sampled("parallel_r1", "transcript")
    trie, seen = packed(trajectory), sights(trajectory)
    svg, left, y = Svg("Rows of calls, and the trie they are packed into"), 80, 34
    svg.text(8, 18, f"one row per call: {trie.raw_tokens} input positions", 12)
    shown = set[int]()
    for number, where in enumerate(trie.where):
        svg.text(8, y + 12, f"call {number + 1}", 11)
        for k, place in enumerate(where.tolist()):
            segment, offset = seen.owners[place]
            text = tokens.decode((trajectory.segments[segment].ids[offset],))
            fill = colour(trajectory.segments[segment]) if place not in shown else "white"
            svg.cell(left + CELL * k, y, text, fill, LINE if place in shown else "white")
        shown.update(where.tolist())
        y += 26
    svg.text(8, y + 22, f"packed: {trie.unique_tokens} positions; below each, the token it learns to predict", 12)
    y += 36
    lanes: dict[int, float] = {}
    labels, parents = trie.shift_labels.tolist(), trie.segments.parent_S.tolist()
    ends = trie.segments.end_S.tolist()
    for chain in trie_chains(trie.segments):
        first = trie.segments.start_S.tolist().index(chain.start)
        if parents[first] >= 0:
            above = ends[parents[first]] - 1
            x = left + CELL * (trie.position_ids[above].item() + 0.5)
            at = (left + CELL * trie.position_ids[chain.start].item(), y + 8)
            svg.line((x, lanes[above] + CELL + 14), (x, y + 8), at)
        for place in range(chain.start, chain.end):
            segment, offset = seen.owners[place]
            text = tokens.decode((trajectory.segments[segment].ids[offset],))
            x = left + CELL * trie.position_ids[place].item()
            svg.cell(x, y, text, colour(trajectory.segments[segment]))
            label = symbol(tokens.decode((labels[place],))) if labels[place] >= 0 else "\u00b7"
            svg.text(x + CELL / 2, y + 29, label, 8 if len(label) > 1 else 10, "middle", "#52606d")
            lanes[place] = y
        y += 48
    legend(svg, left, y + 4, [tokens.decode((t,)) for s in trajectory.segments for t in s.ids])
    return svg.written()


def pictures() -> dict[str, str]:
    """Every picture by its file name."""
    masks = {f"mask_{join}.svg": mask(join) for join in JOINS}
    return {"fork_join.svg": fork_join(), "trie.svg": trie()} | masks


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures().items():
        (FOLDER / name).write_text(picture, encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
