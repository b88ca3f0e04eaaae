"""ThreadWeaver's grammar: outlines, isolated threads, and a join that re-reads their transcript (arXiv 2512.07843).

    <think> text <Parallel><Outlines><Outline>1: task</Outline><Outline>2: task</Outline></Outlines>   the model stops
    \\n<Thread>\\n1:  body \\n</Thread><Thread>\\n2:  body \\n</Thread>           headers forced, bodies sampled at once
    \\n</Parallel> text </think> answer eos                                       </Parallel> forced, the rest sampled

White space between tags is optional in the grammar; demonstrations write none inside `<Parallel>`, because every
token of the outlines lies on the critical path. As in the paper (section 3.2) the client writes `</Parallel>`.
"""

import re
from typing import Literal

from rollout.demonstration import Block, Demonstration
from rollout.dialects.base import DialectError, Reading, Reasoning, Script
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory

_NUMBERED = re.compile(r"\s*([0-9]{1,3})\s*:(.*)", re.DOTALL)


class ThreadWeaver(Reasoning):
    """Flat blocks, numbered outlines 1..n, transcript join."""

    name = "threadweaver"
    tags = (
        *Reasoning.tags,
        *("<Parallel>", "</Parallel>", "<Outlines>", "</Outlines>"),
        *("<Outline>", "</Outline>", "<Thread>", "</Thread>"),
    )

    def __init__(self, tokens: Tokens) -> None:
        super().__init__(tokens)
        self.parallel, self.end_parallel = tokens.tag("<Parallel>"), tokens.tag("</Parallel>")
        self.outlines, self.end_outlines = tokens.tag("<Outlines>"), tokens.tag("</Outlines>")
        self.outline, self.end_outline = tokens.tag("<Outline>"), tokens.tag("</Outline>")
        self.thread, self.end_thread = tokens.tag("<Thread>"), tokens.tag("</Thread>")
        self.newline = tokens.text("\n")
        self._tag_ids = frozenset(tokens.tag(tag) for tag in self.tags)

    def stops(self, in_thread: bool) -> tuple[int, ...]:
        return (self.end_thread if in_thread else self.end_outlines, self.eos)

    def read(self, ids: tuple[int, ...], finish: Literal["stop", "length"], in_thread: bool) -> Reading:
        if finish == "length":
            return Reading("truncated")
        if ids[-1] == self.eos:
            return Reading("final")
        if in_thread:
            return Reading("join")
        threads, reason = self._read_outlines(ids)
        return Reading("malformed", reason=reason) if reason else Reading("fork", threads)

    def _read_outlines(self, ids: tuple[int, ...]) -> tuple[int, str]:
        """How many outlines the trailing `<Parallel> <Outlines> ... </Outlines>` holds, or why it is none."""
        if self.parallel not in ids:
            return 0, "no <Parallel> before </Outlines>"
        start = len(ids) - 1 - ids[::-1].index(self.parallel)
        rest = self._without_blank(ids[start + 1 : -1])
        if not rest or rest[0] != self.outlines:
            return 0, "no <Outlines> right after <Parallel>"
        count, at = 0, 1
        while at < len(rest):
            end = next((i for i in range(at + 1, len(rest)) if rest[i] in self._tag_ids), None)
            if rest[at] != self.outline or end is None or rest[end] != self.end_outline:
                return 0, "something other than <Outline> n: text </Outline> between <Outlines> tags"
            numbered = _NUMBERED.fullmatch(self.tokens.decode(rest[at + 1 : end]))
            count += 1
            if numbered is None or int(numbered[1]) != count:
                return 0, "outlines are not numbered 1, 2, 3, ..."
            at = end + 1
        return count, "" if count else "no <Outline> at all"

    def _without_blank(self, ids: tuple[int, ...]) -> list[int]:
        """Drops white space that stands between two tags; text inside an outline is kept."""
        kept: list[int] = []
        inside = False
        for token in ids:
            if token in self._tag_ids:
                inside = token == self.outline
            elif not inside and not self.tokens.decode((token,)).strip():
                continue
            kept.append(token)
        return kept

    def fork(self, threads: int) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        header = (self.thread, *self.newline)
        return self.newline, [(*header, *self.tokens.text(f"{k}:")) for k in range(1, threads + 1)]

    def close_thread(self) -> tuple[int, ...]:
        return (*self.newline, self.end_thread)

    def join(self) -> tuple[int, ...]:
        return (*self.newline, self.end_parallel)

    def force_answer(self, response: list[int]) -> tuple[int, ...]:
        if self.end_think in response:
            return ()
        still_open = response.count(self.parallel) > response.count(self.end_parallel)
        return (self.end_parallel, self.end_think) if still_open else (self.end_think,)

    def check(self, trajectory: Trajectory) -> str | None:
        for call in trajectory.calls:
            sampled = trajectory.segments[call.sampled]
            tags = [token for token in sampled.ids if token in self._tag_ids]
            if sampled.thread:
                if call.event != "join" or tags != [self.end_thread]:
                    return "a thread holds a tag, or did not close itself"
            elif call.event == "fork":
                last = len(tags) - 1 - tags[::-1].index(self.parallel)
                if [token for token in tags[:last] if token != self.think]:
                    return "a tag outside its place in the root"
            elif call.event != "final" or [t for t in tags if t not in (self.think, self.end_think)]:
                return "a tag outside its place in the root"
        return self.check_reasoning(trajectory.root_ids())

    def write(self, demonstration: Demonstration) -> Script:
        script: Script = {(): []}
        turn: list[int] = [self.think]
        for piece in demonstration.reasoning:
            if not isinstance(piece, Block):
                turn += self.tokens.text(piece)
                continue
            if not piece.threads:
                raise DialectError("a parallel block of no threads")
            block = len(script[()])
            turn += [self.parallel, self.outlines]
            for k, (outline, body) in enumerate(piece.threads, start=1):
                turn += [self.outline, *self.tokens.text(f"{k}:{outline}"), self.end_outline]
                script[(block, k)] = [(*self.tokens.text(f"{body}\n"), self.end_thread)]
            script[()].append((*turn, self.end_outlines))
            turn = []
        script[()].append((*turn, *self.answer(demonstration.answer)))
        return script
