"""What is recorded of one trajectory while it is sampled, its limits, and how its threads are."""

from dataclasses import dataclass
from typing import Literal

from rollout.dialects.base import Dialect, DialectError
from rollout.engine import Engine
from rollout.trajectory import Attention, Call, Origin, Segment

NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one trajectory, in response tokens (sampled and forced). None: no limit but the engine's context.

    `answer` tokens are kept back so that a root out of budget can still close its reasoning and answer. Siblings share
    what is left in equal parts, so a trajectory does not depend on which thread the engine serves first. `threads` is
    per block, `blocks` per thread, `thread` is what one thread may sample itself.

    >>> Budget(response=768, answer=32, threads=8, blocks=16)
    """

    response: int
    answer: int
    threads: int
    blocks: int
    critical: int | None = None
    thread: int | None = None
    depth: int = 4


@dataclass(frozen=True, slots=True)
class Strategy:
    """How the threads of a block are sampled. `fork_join`: without each other. `group_think`: in lockstep, each seeing
    the others' earlier tokens, their positions `stride` apart (None: as far as they may get, for one block only).
    `hogwild`: the same over one shared cache in which every reader has positions of its own. `in_order`: one after the
    other, each seeing those before it, as a decoder without threads writes the same tags; transcript joins only.

    `thread_vectors`: the model has a learned vector per thread (stitched joins only), and adds it. `banned_ids` are
    never sampled: the tags that fork, where what a policy does without them is asked. Nothing trains on such a
    trajectory, nor on one sampled in order."""

    name: Literal["fork_join", "group_think", "hogwild", "in_order"] = "fork_join"
    stride: int | None = None
    thread_vectors: bool = False
    banned_ids: tuple[int, ...] = ()


class Recording:
    """What is recorded of one trajectory while it is being sampled, and what samples it."""

    def __init__(
        self,
        engine: Engine,
        dialect: Dialect,
        budget: Budget,
        temperature: float,
        seed: int | None,
        strategy: Strategy,
    ) -> None:
        self.engine, self.dialect, self.budget, self.temperature = engine, dialect, budget, temperature
        self.seed, self.strategy, self.stride = seed, strategy, 0
        attention: dict[str, Attention] = {"group_think": "synchronous", "hogwild": "hogwild"}
        stitched = dialect.join_rule == "stitched"
        self.attention: Attention = attention.get(strategy.name, "stitched" if stitched else "causal")
        if strategy.thread_vectors and self.attention != "stitched":
            raise DialectError(
                f"threads have vectors in a stitched join only: dialect {dialect.name} has another one here"
            )
        self.segments: list[Segment] = []
        self.finish: list[int] = []  # critical tokens up to the end of each segment
        self.calls: list[Call] = []
        self.notes: dict[str, int] = {}

    @property
    def view_rule(self) -> Attention:
        """How a call that is sampled alone sees its context."""
        return "stitched" if self.attention == "stitched" else "causal"

    def add(
        self,
        origin: Origin,
        ids: tuple[int, ...],
        parents: tuple[int, ...],
        thread: tuple[int, ...] = (),
        logprobs: tuple[float, ...] | None = None,
    ) -> int:
        own = 0 if origin == "prompt" else len(ids)
        self.finish.append(own + max((self.finish[parent] for parent in parents), default=0))
        self.segments.append(Segment(origin, ids, logprobs, parents, thread))
        return len(self.segments) - 1

    def note(self, what: str) -> None:
        self.notes[what] = self.notes.get(what, 0) + 1
