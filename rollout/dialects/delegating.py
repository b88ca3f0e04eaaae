"""What dialects of the message join share whose threads solve a task of their own and give back its answer alone."""

from collections.abc import Mapping
from typing import Any, ClassVar

from rollout.demonstration import Block, Demonstration, Pieces
from rollout.dialects.base import (
    NO_SETTINGS,
    Child,
    DialectError,
    Ids,
    Join,
    Name,
    Reasoning,
    Result,
    Script,
    forks,
    told,
)
from rollout.options import read_options
from rollout.search_trace import SearchRun
from rollout.tokens import Tokens
from rollout.trajectory import Call, Trajectory


class Delegating(Reasoning):
    """A thread is prompted like the root, with a task that its parent wrote, and is a whole response: `<think>`
    reasoning `</think>` answer eos. The answer, without any tag in it, is all that its parent reads."""

    name: ClassVar[str]
    joins: ClassVar[tuple[Join, ...]] = ("message",)
    Options: ClassVar[type[Any]]

    @classmethod
    def own_tags(cls, options: Any) -> tuple[str, ...]:
        raise NotImplementedError

    @classmethod
    def tags(cls, options: Mapping[str, Any] = NO_SETTINGS) -> tuple[str, ...]:
        """What the tokenizer must know. Raises DialectError for an unknown or senseless option."""
        return (*cls.think_tags, *cls.own_tags(cls.read_options(options)))

    @classmethod
    def read_options(cls, options: Mapping[str, Any]) -> Any:
        return read_options(f"dialect {cls.name}", cls.Options, options, DialectError)

    def __init__(self, tokens: Tokens, join: Join | None = None, options: Mapping[str, Any] = NO_SETTINGS) -> None:
        super().__init__(tokens)
        self.join_rule: Join = join or self.joins[0]
        self.options = self.read_options(options)
        self.tag_ids = frozenset((*map(tokens.tag, self.tags(options)), self.eos))

    def child(self, task: Ids) -> Child:
        """A thread that is prompted with these ids."""
        return Child(self.tokens.prompt_of(task), fresh=True)

    def is_task(self, ids: Ids) -> bool:
        """Whether these ids can be a task: something, and no tag in it."""
        return bool(ids) and not self.tag_ids.intersection(ids)

    def given_back(self, result: Result) -> Ids:
        """The answer of a thread: what follows its `</think>`; nothing when it did not end, or never got there."""
        return self.said(result.ids) if result.closed else ()

    def said(self, ids: Ids) -> Ids:
        answer = ids[ids.index(self.end_think) + 1 :] if self.end_think in ids else ()
        return tuple(token for token in answer if token not in self.tag_ids)

    def tasks_in(self, ids: Ids) -> list[Ids]:
        """The tasks that a turn hands out where it ends; none when it is not of that form."""
        raise NotImplementedError

    def force_answer(self, response: Ids) -> Ids:
        return () if self.end_think in response else (self.end_think,)

    # -- whole trajectories ----------------------------------------------------------------------------------------

    def tasks(self, trajectory: Trajectory) -> dict[Name, str]:
        numbered = ((block, enumerate(self.tasks_in(ids), start=1)) for block, ids in forks(trajectory))
        return {(*block, k): self.tokens.decode(task) for block, tasks in numbered for k, task in tasks}

    def check(self, trajectory: Trajectory) -> str | None:
        written: dict[Name, list[int]] = {}
        for call in trajectory.calls:
            sampled = trajectory.segments[call.sampled]
            written.setdefault(sampled.thread, []).extend(sampled.ids)
            tags = tuple(t for t in sampled.ids if t in self.tag_ids and t not in self._frame)
            if not self.is_turn(call, tags):
                return "a tag outside its place" if call.event in ("fork", "wait", "final", "join") else "cut off"
        if "thread/never joined" in trajectory.notes:
            return "a thread was never joined"
        flaws = (self.check_reasoning(ids) for ids in written.values())
        return next((flaw for flaw in flaws if flaw), None) or self.check_outcome(trajectory)

    @property
    def _frame(self) -> tuple[int, int, int]:
        return self.think, self.end_think, self.eos

    def is_turn(self, call: Call, tags: Ids) -> bool:
        """Whether a call may hold these tags, those of the reasoning left out."""
        raise NotImplementedError

    def write(self, demonstration: Demonstration | SearchRun) -> Script:
        plain = told(demonstration, self.name)
        script: Script = {}
        self._write(plain.reasoning, (), plain.answer, script)
        return script

    def _write(self, pieces: Pieces, name: Name, answer: str, script: Script) -> None:
        """The turns of one thread, and of those below it."""
        turns, turn = script.setdefault(name, []), [self.think]
        for piece in pieces:
            if isinstance(piece, str):
                turn += self.tokens.text(piece)
                continue
            if len(piece.tasks) != len(piece.threads) or not piece.threads:
                raise DialectError(
                    f"dialect {self.name} needs the task of every thread, for it sees nothing else, and this "
                    "demonstration has none: set sft.parallel_share=0, or take a dialect of the transcript join"
                )
            turn = [*self.write_block(piece, name, turn, script), *self.tokens.text(piece.conclusion)]
        turns.append((*turn, *self.answer(answer)))

    def write_block(self, block: Block, name: Name, turn: list[int], script: Script) -> list[int]:
        """Adds the turns up to the join to script[name], those of the threads to the script; returns what the turn
        after the join begins with."""
        raise NotImplementedError

    def write_child(self, block: Block, k: int, name: Name, script: Script) -> None:
        """Thread `k` (from 0) of a block, as thread `name`."""
        self._write(block.bodies()[k], name, block.tasks[k][1], script)
