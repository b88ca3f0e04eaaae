"""Recursive calls in text (RLM, arXiv 2512.24601, without its REPL): a thread is a whole response and may fork too.

    <think> text <spawn><task>sub-problem</task><task>sub-problem</task></spawn>          the model stops
    each thread: prompted with its sub-problem alone, it writes <think> .. </think> answer eos, and may spawn itself
    <results><result>answer</result><result>answer</result></results> text </think> answer eos      results forced

How deep and how wide is the client's to say (`rollout.max_depth`, `max_threads`, `max_blocks`): the model has no way to
raise a limit.
"""

from collections.abc import Sequence

from rollout.demonstration import Block
from rollout.dialects.base import Fork, Ids, Name, Reading, Result, Script, Turn
from rollout.dialects.delegating import Delegating
from rollout.dialects.tagged import NoOptions
from rollout.trajectory import Call

_TAGS = ("<spawn>", "</spawn>", "<task>", "</task>", "<results>", "</results>", "<result>", "</result>")


class Recursive(Delegating):
    """Blocks that wait for all their threads; a thread that did not end gives back an empty result."""

    name = "recursive"
    Options = NoOptions

    @classmethod
    def own_tags(cls, options: object) -> tuple[str, ...]:
        return _TAGS

    def stops(self, thread: Name) -> Ids:
        return (self.tokens.tag("</spawn>"), self.eos)

    def read(self, turn: Turn) -> Reading:
        if turn.finish == "length":
            return Reading("truncated")
        if turn.ids[-1] == self.eos:
            return Reading("join" if turn.thread else "final")
        if self.end_think in turn.before or self.end_think in turn.ids:
            return Reading("malformed", reason="after the reasoning")
        tasks = self.tasks_in(turn.ids)
        if not tasks:
            return Reading("malformed", reason="no <spawn> with <task> text </task> before </spawn>")
        return Reading("fork", Fork(tuple(map(self.child, tasks))))

    def tasks_in(self, ids: Ids) -> list[Ids]:
        spawn, task, end_task = map(self.tokens.tag, ("<spawn>", "<task>", "</task>"))
        if spawn not in ids:
            return []
        rest = ids[len(ids) - ids[::-1].index(spawn) : -1]
        tasks: list[Ids] = []
        while rest:
            end = rest.index(end_task) if end_task in rest else 0
            if rest[0] != task or not self.is_task(rest[1:end]):
                return []
            tasks.append(rest[1:end])
            rest = rest[end + 1 :]
        return tasks

    def join(self, fork: Fork, results: Sequence[Result], thread: Name) -> Ids:
        left, right = self.tokens.tag("<result>"), self.tokens.tag("</result>")
        told = [token for result in results for token in (left, *self.given_back(result), right)]
        return (self.tokens.tag("<results>"), *told, self.tokens.tag("</results>"))

    def join_tokens(self, fork: Fork, thread: Name) -> int:
        return 2 + 2 * len(fork.children)

    def is_turn(self, call: Call, tags: Ids) -> bool:
        if call.event != "fork":
            return call.event in ("final", "join") and not tags
        return bool(tags) and tags[0] == self.tokens.tag("<spawn>") and self.tokens.tag("<spawn>") not in tags[1:]

    def write_block(self, block: Block, name: Name, turn: list[int], script: Script) -> list[int]:
        tag, turns = self.tokens.tag, script[name]
        for k, (task, _) in enumerate(block.tasks):
            turn = [*turn, *([] if k else [tag("<spawn>")]), tag("<task>"), *self.tokens.text(task), tag("</task>")]
            self.write_child(block, k, (*name, len(turns), k + 1), script)
        turns.append((*turn, tag("</spawn>")))
        return []
