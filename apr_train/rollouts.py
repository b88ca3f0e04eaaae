"""Problems in, scored trajectories out: the sampler, the dialect and the verifier of one rank."""

from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from apr_train.config import RolloutConfig
from apr_train.tasks.base import Problem
from rewards.reward import Scored
from rewards.verdict import Verdict, Verifier
from rollout.critical_path import measure
from rollout.dialects.base import Dialect
from rollout.engine import Engine
from rollout.orchestrator import Budget, run_trajectory
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory


class Sampler(Engine, Protocol):
    """An engine that this rank owns: runs coroutines that await `complete`, and takes the trainer's weights."""

    policy_version: int
    """How many times weights were loaded."""

    def reseed(self, seed: int) -> None:
        """Restarts the stream that every following call draws its seed from."""
        ...

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Takes all parameters, by their Hugging Face names. Raises EngineError when one is missing or misshapen."""
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

    def collect(self, problems: Sequence[Problem], *, temperature: float, seed: int) -> list[Scored]:
        """Samples one trajectory per problem (repeat a problem for a group) and scores it. Raises EngineError."""
        self.sampler.reseed(seed)
        trajectories = self.sampler.run(
            [
                run_trajectory(
                    self.sampler,
                    self.dialect,
                    problem.id,
                    self.tokens.prompt(problem.prompt),
                    self.budget,
                    temperature=temperature,
                    policy_version=self.sampler.policy_version,
                )
                for problem in problems
            ]
        )
        return [self._score(t, problem) for t, problem in zip(trajectories, problems, strict=True)]

    def _score(self, trajectory: Trajectory, problem: Problem) -> Scored:
        return Scored(
            trajectory, measure(trajectory), self._verdict(trajectory, problem), self.dialect.check(trajectory)
        )

    def _verdict(self, trajectory: Trajectory, problem: Problem) -> Verdict:
        """Only a finished response has an answer to judge."""
        if trajectory.outcome not in ("answered", "forced_answer"):
            return "unparsable"
        return self.verifier(self.tokens.decode(trajectory.response_ids()[:-1]), problem.answer)


def budget_of(config: RolloutConfig) -> Budget:
    """The orchestrator's budget from the configuration."""
    return Budget(
        response=config.max_response_tokens,
        answer=config.answer_tokens,
        threads=config.max_threads,
        blocks=config.max_blocks,
        critical=config.max_critical_tokens,
        thread=config.max_thread_tokens,
    )
