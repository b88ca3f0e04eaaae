"""Problems in, scored trajectories out: the sampler, the dialect and the verifier of one rank."""

from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from torch import Tensor

from apr_train.config import Config, RolloutConfig
from apr_train.deadlines import Deadlines
from apr_train.lifecycle import watched
from apr_train.tasks.base import JudgesThreads, Problem, Rating, Splittable, TaskError
from rewards.scored import Name, Scored
from rewards.verdict import BatchVerifier, Verdict, Verifier
from rollout.critical_path import measure
from rollout.dialects.base import Dialect
from rollout.engine import Engine
from rollout.engines.memo import Memo
from rollout.orchestrator import FORK_JOIN, Budget, Strategy, mix
from rollout.strategies.base import FixedStrategy, Question, Setting, Solved
from rollout.strategies.single import Single
from rollout.tokens import Tokens

Result = TypeVar("Result")


class Sampler(Engine, Protocol):
    """An engine that this rank owns: runs coroutines that await `complete`, and takes the trainer's weights."""

    policy_version: int
    """How many times weights were loaded."""

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Takes all parameters, by their Hugging Face names. Raises EngineError when one is missing or misshapen."""
        ...

    def close(self) -> None:
        """Frees what the sampler holds."""
        ...

    def run(self, coroutines: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
        """Results in order; an error in one cancels the rest and propagates."""
        ...


@runtime_checkable
class Revivable(Protocol):
    """A sampler whose engine can die while this process lives: it raises EngineDied, and can be brought back."""

    def revive(self, seconds: float) -> None:
        """Brings the engine back, with the weights that it was first started with. Raises EngineDied where it may come
        back later, at the latest after `seconds`, and EngineError where it does not."""
        ...


@dataclass(frozen=True)
class Rollouts:
    """Collects trajectories for problems and judges them.

    >>> scored = rollouts.collect(problems, temperature=1.0, seed=3)  # one per problem, in order
    """

    sampler: Sampler
    dialect: Dialect
    tokens: Tokens
    verifier: Verifier
    budget: Budget
    strategy: Strategy = FORK_JOIN
    stop: Callable[[], bool] | None = None
    """Looked at while trajectories are sampled."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    restarts: int = 3
    """How often the engine may die in a stage; see `revival`."""
    memo: Memo = field(default_factory=Memo)
    """Calls that were answered before the engine died; `revival` keeps it."""
    parts: Splittable | None = None
    """The task, where it can take its problems apart."""
    judge: JudgesThreads | None = None
    """The task, where it can judge single threads."""
    search: FixedStrategy = field(default_factory=Single)
    """What is made of several samples, in an evaluation."""

    @property
    def searched(self) -> bool:
        """Whether more is made of a problem than one sample, as the policy is trained."""
        return not isinstance(self.search, Single)

    def collect(self, problems: Sequence[Problem], *, temperature: float, seed: int, first: int = 0) -> list[Scored]:
        """Samples one trajectory per problem (repeat a problem for a group) and scores it. Raises EngineError, and
        Stopped as soon as `stop` says so. Called again after EngineDied, it does not ask for what `memo` holds.

        Trajectory i draws from the stream (seed, first + i): ranks that count on from each other sample what one would.
        """
        done = [0]
        sampler = self.sampler
        engine = self.memo.over(sampler) if isinstance(sampler, Revivable) else sampler

        setting = Setting(
            *(engine, self.dialect, self.tokens, self.budget, temperature, self.strategy, sampler.policy_version)
        )

        async def sample(problem: Problem, index: int) -> Solved:
            found = await self.search.solve(setting, self._question(problem), mix(seed, first + index))
            done[0] += 1
            return found

        coroutines = [sample(problem, index) for index, problem in enumerate(problems)]
        with self.deadlines("rollout", lambda: f"{done[0]} of {len(problems)} trajectories"):
            if self.stop is None:
                found = self.sampler.run(coroutines)
            else:
                found = self.sampler.run(watched(coroutines, self.stop))
        solved = [each for each in found if each is not None]
        with self.deadlines("verify"):
            verdicts = self._verdicts(solved, problems)
            return [self._scored(*each) for each in zip(solved, verdicts, problems, strict=True)]

    def _scored(self, solved: Solved, verdict: Verdict, problem: Problem) -> Scored:
        """A search's trajectory holds several responses, which no grammar describes as a whole."""
        trajectory, response = solved.trajectory, solved.response
        flaw = None if self.searched else self.dialect.check(trajectory)
        scored = Scored(trajectory, measure(trajectory), verdict, flaw, response)
        if self.judge is None or self.searched or not scored.threads:
            return scored
        return replace(scored, thread_verdicts=self._thread_verdicts(self.judge, scored, problem))

    def _thread_verdicts(self, judge: JudgesThreads, scored: Scored, problem: Problem) -> dict[Name, float]:
        """Of the threads that closed themselves. Raises TaskError for a verdict that is none."""
        tasks = self.dialect.tasks(scored.trajectory)
        found: dict[Name, float] = {}
        for thread in (thread for thread in scored.threads.values() if thread.finished):
            said = self.tokens.decode(self.dialect.said(thread.sampled))
            success = judge.thread_success(problem, tasks.get(thread.name, ""), said)
            if success is None:
                continue
            if not 0.0 <= success <= 1.0:
                raise TaskError(f"problem {problem.id}: thread_success is {success!r}, not 0 to 1 or None")
            found[thread.name] = float(success)
        return found

    def _question(self, problem: Problem) -> Question:
        def judge(response: str) -> bool:
            return self.verifier(response, problem.answer) == "correct"

        whole = Question(problem.id, problem.prompt, self.tokens.prompt(problem.prompt), self.verifier.answer, judge)
        parts = self.parts
        if parts is None:
            return whole
        score = parts.rate if isinstance(parts, Rating) else None
        return replace(
            whole, split=lambda: parts.split(problem), merge=lambda found: parts.merge(problem, found), score=score
        )

    def _verdicts(self, solved: Sequence[Solved], problems: Sequence[Problem]) -> list[Verdict]:
        """Only a finished response has an answer to judge: what the root wrote, without the eos."""
        verdicts: list[Verdict] = ["unparsable"] * len(problems)
        finished = [i for i, each in enumerate(solved) if each.response]
        pairs = [(self.tokens.decode(solved[i].response[:-1]), problems[i].answer) for i in finished]
        if isinstance(self.verifier, BatchVerifier):
            judged = self.verifier.verify_many(pairs)
        else:
            judged: list[Verdict] = [self.verifier(response, answer) for response, answer in pairs]
        for i, verdict in zip(finished, judged, strict=True):
            verdicts[i] = verdict
        return verdicts


def strategy_of(config: Config) -> Strategy:
    """How threads are sampled, from the configuration."""
    return Strategy(cast(Any, config.strategy.name), config.strategy.stride, config.model.thread_vectors > 0)


def budget_of(config: RolloutConfig) -> Budget:
    """The orchestrator's budget from the configuration."""
    return Budget(
        response=config.max_response_tokens,
        answer=config.answer_tokens,
        threads=config.max_threads,
        blocks=config.max_blocks,
        critical=config.max_critical_tokens,
        thread=config.max_thread_tokens,
        depth=config.max_depth,
    )
