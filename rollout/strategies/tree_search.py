"""Monte Carlo tree search over thoughts, by TreeQuest: MCTS, and AB-MCTS (arXiv 2503.04412), which also widens."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import exp, sqrt
from typing import Any, ClassVar, Literal

import numpy as np

from rollout.engines.calls import together
from rollout.errors import shortened
from rollout.seeds import mix
from rollout.strategies.base import Candidate, Ids, Question, Setting, Solved, StrategyError, answer_in
from rollout.strategies.merge import Name
from rollout.strategies.self_consistency import majority
from rollout.strategies.writing import Separator, State, Writer

_ACTION = "think"


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """`samples`: how many nodes are told to the search, a thought each (ours: 64). `depth`: after so many thoughts less
    one, the rest of the response is sampled (rStar: 5). A thought ends with `separator`, or after `thought_tokens` if
    given.

    A node's score is the mean probability of its tokens; `verifier_oracle`: a finished one's is 1 if it is right, which
    no one knows at test time, else 0. The answer is that of the finished node with the best `score`, or of most of
    them, `vote`.
    """

    samples: int = 64
    depth: int = 5
    separator: str = "\n"
    thought_tokens: int | None = None
    score: Literal["logprob", "verifier_oracle"] = "logprob"
    answer: Literal["score", "vote"] = "score"

    def check(self, strategy: str, batch: int) -> None:
        """Raises StrategyError for numbers that make no sense."""
        tokens = 1 if self.thought_tokens is None else self.thought_tokens
        if min(self.samples, self.depth, batch, tokens) < 1:
            raise StrategyError(f"strategy {strategy}: samples, depth, calls at once and tokens are 1 or more")


@dataclass(frozen=True, slots=True)
class MctsOptions(SearchOptions):
    """As SearchOptions. TreeQuest's defaults: 2 samples of a node at once, UCT with c = sqrt(2) and a prior by softmax
    of the siblings' scores."""

    samples_per_node: int = 2
    exploration: float = sqrt(2)

    def __post_init__(self) -> None:
        self.check("mcts", self.samples_per_node)


@dataclass(frozen=True, slots=True)
class AbMctsOptions(SearchOptions):
    """As SearchOptions. TreeQuest's AB-MCTS-A: a Thompson draw at each node says whether to sample it anew or to go
    deeper, under a `gaussian` or `beta` model of scores. `batch` draws at once (advised: at most 5)."""

    model: Literal["gaussian", "beta"] = "gaussian"
    batch: int = 5

    def __post_init__(self) -> None:
        self.check("ab_mcts", self.batch)


class TreeSearch:
    """Asks for nodes to extend, samples them side by side, tells their scores; a round waits for all rounds before."""

    name: ClassVar[str]

    def __init__(self, options: Any) -> None:
        self.options = options
        self.separator = Separator(options.separator, self.name)

    def algorithm(self, treequest: Any) -> tuple[Any, int]:
        """The search, and how many nodes it is asked for at once."""
        raise NotImplementedError

    async def solve(self, setting: Setting, question: Question, seed: int) -> Solved:
        options: SearchOptions = self.options
        if options.score == "verifier_oracle" and question.judge is None:
            raise StrategyError(f"strategy {self.name}, score=verifier_oracle: there is no verifier; use score=logprob")
        search, batch = self.algorithm(load_treequest(self.name))
        writer = Writer(setting, question, self.name)
        stops = () if options.thought_tokens else self.separator.ids(setting.tokens)
        tree = search.init_tree()
        ends: dict[int, tuple[State, float]] = {}  # finished responses and their scores, by their last segment
        barrier: tuple[int, ...] = ()
        told = number = 0
        while told < options.samples:
            with _drawn_by(mix(seed, number, 0)):
                tree, trials = search.ask_batch(tree, min(batch, options.samples - told), [_ACTION])
            states: list[State] = [trial.parent_state or writer.start for trial in trials]
            grown = await together(
                self._extend(writer, state, stops, (number, k), mix(seed, number, k), barrier)
                for k, state in enumerate(states, start=1)
            )
            for trial, state in zip(trials, grown, strict=True):
                score = ends[state.last][1] if state.last in ends else self._score(writer, state)
                tree = search.tell(tree, trial.trial_id, (state, score))
                if state.finished:
                    ends[state.last] = (state, score)
            new = tuple(after.last for before, after in zip(states, grown, strict=True) if after.last != before.last)
            barrier = new or barrier  # each new one waited for all of the old
            told, number = told + len(trials), number + 1
        return writer.solved(self._chosen(setting, question, list(ends.values())))

    async def _extend(
        self, writer: Writer, state: State, stops: Ids, name: Name, seed: int, after: tuple[int, ...]
    ) -> State:
        """One thought more. A node that has ended is its own child: TreeQuest knows no ends."""
        if state.ended is not None:
            writer.record.note("strategy/ended node chosen again")
            return state
        options: SearchOptions = self.options
        if state.thoughts + 1 >= options.depth:
            return await writer.think(state, name, seed, after)
        return await writer.think(state, name, seed, after, stops=stops, most=options.thought_tokens)

    def _score(self, writer: Writer, state: State) -> float:
        """From 0 to 1, as TreeQuest wants it; 0 for a response that can no longer finish."""
        if state.ended is not None and not state.finished:
            return 0.0
        judge = writer.question.judge
        if self.options.score == "logprob" or judge is None or not state.finished:
            return exp(state.logprob)
        return float(judge(writer.setting.tokens.decode(state.ids[:-1])))

    def _chosen(self, setting: Setting, question: Question, ends: list[tuple[State, float]]) -> State | None:
        """Of equal ones the first sampled; None when nothing finished."""
        if self.options.answer == "score":
            return max(ends, key=lambda end: end[1], default=(None, 0.0))[0]
        votes = [
            Candidate(state.ids, answer_in(setting, question, state.ids), state.ended or "truncated", state.logprob)
            for state, _ in ends
        ]
        chosen = majority(votes)
        return None if chosen is None else ends[chosen][0]


class Mcts(TreeSearch):
    """Selects a leaf by UCT and samples it a few times."""

    name = "mcts"

    def algorithm(self, treequest: Any) -> tuple[Any, int]:
        options: MctsOptions = self.options
        count = options.samples_per_node
        return treequest.StandardMCTS(samples_per_action=count, exploration_weight=options.exploration), count


class AbMcts(TreeSearch):
    """Widens or deepens, whichever a draw from what it believes of scores prefers."""

    name = "ab_mcts"

    def algorithm(self, treequest: Any) -> tuple[Any, int]:
        options: AbMctsOptions = self.options
        return treequest.ABMCTSA(dist_type=options.model), options.batch


def load_treequest(strategy: str) -> Any:
    """The library, which not every set-up has. Raises StrategyError."""
    try:
        return import_module("treequest")
    except ImportError as error:
        raise StrategyError(
            f"strategy {strategy} needs the package treequest ({shortened(error)}): install the extra `search`"
        ) from error


@contextmanager
def _drawn_by(seed: int) -> Generator[None, None, None]:
    """TreeQuest draws from numpy's global stream: it draws by this seed here, and what others draw does not change."""
    before = np.random.get_state()
    np.random.seed(seed % (1 << 32))
    try:
        yield
    finally:
        np.random.set_state(before)
