"""Problems in, scored trajectories out: the sampler, the dialect and the verifier of one rank."""

from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor

from apr_train.config import Config, RolloutConfig
from apr_train.tasks.base import Problem
from rewards.scored import Scored
from rewards.verdict import BatchVerifier, Verdict, Verifier
from rollout.critical_path import measure
from rollout.dialects.base import Dialect
from rollout.engine import Engine
from rollout.orchestrator import FORK_JOIN, Budget, Strategy, mix, run_trajectory
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory


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

    def run(self, coroutines: Sequence[Coroutine[Any, Any, Trajectory]]) -> list[Trajectory]:
        """Results in order; an error in one cancels the rest and propagates."""
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

    def collect(self, problems: Sequence[Problem], *, temperature: float, seed: int, first: int = 0) -> list[Scored]:
        """Samples one trajectory per problem (repeat a problem for a group) and scores it. Raises EngineError.

        Trajectory i draws from the stream (seed, first + i): ranks that count on from each other sample what one would.
        """
        trajectories = self.sampler.run(
            [
                run_trajectory(
                    self.sampler,
                    self.dialect,
                    problem.id,
                    self.tokens.prompt(problem.prompt),
                    self.budget,
                    temperature=temperature,
                    seed=mix(seed, first + index),
                    policy_version=self.sampler.policy_version,
                    strategy=self.strategy,
                )
                for index, problem in enumerate(problems)
            ]
        )
        verdicts = self._verdicts(trajectories, problems)
        return [
            Scored(trajectory, measure(trajectory), verdict, self.dialect.check(trajectory))
            for trajectory, verdict in zip(trajectories, verdicts, strict=True)
        ]

    def _verdicts(self, trajectories: Sequence[Trajectory], problems: Sequence[Problem]) -> list[Verdict]:
        """Only a finished response has an answer to judge: what the root wrote, without the eos."""
        verdicts: list[Verdict] = ["unparsable"] * len(problems)
        finished = [i for i, t in enumerate(trajectories) if t.outcome in ("answered", "forced_answer")]
        pairs = [(self.tokens.decode(trajectories[i].root_ids()[:-1]), problems[i].answer) for i in finished]
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
