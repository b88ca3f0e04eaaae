"""AsyncThink's tags (arXiv 2510.26658): an organizer that forks, goes on thinking, and waits only where it joins.

    <think> text <FORK-1>sub-query</FORK-1> text <FORK-2>sub-query</FORK-2> text <JOIN-1>      the model stops to wait
    each worker: prompted with its sub-query alone, it writes <think> .. </think> answer eos
    answer</JOIN-1> text <JOIN-2>answer</JOIN-2> text </think> answer eos        each answer and </JOIN-i> are forced

There are as many numbers as the pool has workers; a number that was joined may be forked again. What follows a join and
how a worker's text is cut could not be read in the paper; `</JOIN-i>` and the answer alone are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.demonstration import Block
from rollout.dialects.base import DialectError, Fork, Ids, Name, Reading, Result, Script, Turn
from rollout.dialects.delegating import Delegating
from rollout.trajectory import Call


@dataclass(frozen=True, slots=True)
class Pool:
    """`workers`: how many may be out at once."""

    workers: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 16:
            raise DialectError(f"dialect.options.workers={self.workers} must be 1 to 16")


class AsyncThink(Delegating):
    """Non-blocking forks of one worker each. Workers do not fork."""

    name = "asyncthink"
    Options = Pool

    @classmethod
    def own_tags(cls, options: Pool) -> tuple[str, ...]:
        numbers = range(1, options.workers + 1)
        return tuple(tag.format(i) for i in numbers for tag in ("<FORK-{}>", "</FORK-{}>", "<JOIN-{}>", "</JOIN-{}>"))

    def _numbered(self, form: str) -> dict[int, int]:
        return {self.tokens.tag(form.format(i)): i for i in range(1, self.options.workers + 1)}

    def stops(self, thread: Name) -> Ids:
        return (self.eos,) if thread else (*self._numbered("</FORK-{}>"), *self._numbered("<JOIN-{}>"), self.eos)

    def read(self, turn: Turn) -> Reading:
        if turn.finish == "length":
            return Reading("truncated")
        last = turn.ids[-1]
        if last == self.eos:
            return Reading("join" if turn.thread else "final")
        if self.end_think in turn.before or self.end_think in turn.ids:
            return Reading("malformed", reason="after the reasoning")
        if last in self._numbered("<JOIN-{}>"):
            return Reading("wait", label=self._numbered("<JOIN-{}>")[last])
        tasks = self.tasks_in(turn.ids)
        if not tasks:
            return Reading("malformed", reason="no <FORK-i> text before </FORK-i>")
        number = self._numbered("</FORK-{}>")[last]
        return Reading("fork", Fork((self.child(tasks[0]),), label=number, slots=self.options.workers + 1))

    def tasks_in(self, ids: Ids) -> list[Ids]:
        begin = self.tokens.tag(f"<FORK-{self._numbered('</FORK-{}>')[ids[-1]]}>")
        task = ids[len(ids) - ids[::-1].index(begin) : -1] if begin in ids else ()
        return [task] if self.is_task(task) else []

    def join(self, fork: Fork, results: Sequence[Result], thread: Name) -> Ids:
        return (*self.given_back(results[0]), self.tokens.tag(f"</JOIN-{fork.label}>"))

    def join_tokens(self, fork: Fork, thread: Name) -> int:
        return 1

    def is_turn(self, call: Call, tags: Ids) -> bool:
        if call.event == "fork":
            return len(tags) == 2  # read() saw that the first is the second one's
        return len(tags) == (call.event == "wait") and call.event in ("wait", "final", "join")

    def write_block(self, block: Block, name: Name, turn: list[int], script: Script) -> list[int]:
        """In waves of as many workers as there are: all forks, then all joins."""
        if name:
            raise DialectError("dialect asyncthink has one organizer: its workers do not fork")
        tag, turns, workers = self.tokens.tag, script[name], self.options.workers
        for first in range(0, len(block.threads), workers):
            wave = range(first, min(first + workers, len(block.threads)))
            for k in wave:
                number = k - first + 1
                task = self.tokens.text(block.tasks[k][0])
                self.write_child(block, k, (len(turns), 1), script)
                turns.append((*turn, tag(f"<FORK-{number}>"), *task, tag(f"</FORK-{number}>")))
                turn = []
            for k in wave:
                turns.append((*turn, tag(f"<JOIN-{k - first + 1}>")))
                turn = []
        return turn
