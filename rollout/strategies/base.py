"""What a fixed strategy is: many calls for one question, by a plan that no model chose, and one answer."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rollout.dialects.base import Dialect, Reasoning
from rollout.engine import Engine
from rollout.errors import UserError
from rollout.orchestrator import FORK_JOIN, Budget, Strategy
from rollout.tokens import TagError, Tokens
from rollout.trajectory import Outcome, Trajectory

Ids = tuple[int, ...]


class StrategyError(UserError, ValueError):
    """A strategy does not exist, has no such option, or cannot work on this question. Says what to do."""


@dataclass(frozen=True)
class Question:
    """One problem, as a strategy sees it.

    `answer` is the answer in a response's text, in one spelling, None where there is none (a verifier's `answer`).
    `judge` compares a response's text with the gold answer: only an oracle may call it. `split`, `merge` and `score`
    are the task's own, for strategies that decompose: problem texts of the parts; the text of the whole answer from
    those of the parts; how good a partial answer to a problem is without the gold answer, from 0 to 1.

    >>> Question("p0", "a3*2=", tokens.prompt("a3*2="), verifier.answer)
    """

    id: str
    text: str
    prompt: Ids
    answer: Callable[[str], str | None]
    judge: Callable[[str], bool] | None = None
    split: Callable[[], list[str]] | None = None
    merge: Callable[[list[str]], str] | None = None
    score: Callable[[str, str], float] | None = None
    """(problem text, answer text): of the whole problem or of a part."""


@dataclass(frozen=True)
class Setting:
    """What samples, and within which limits: `budget` holds for each candidate response, not for all together."""

    engine: Engine
    dialect: Dialect
    tokens: Tokens
    budget: Budget
    temperature: float = 1.0
    threads: Strategy = FORK_JOIN
    """How the threads of one response are sampled, where its policy forks."""
    policy_version: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of several independent responses. `response` are the ids to be judged, `()` where it did not finish; `answer`
    is None there, and where it has none; `logprob` is the mean over its sampled tokens, in nats."""

    response: Ids
    answer: str | None
    outcome: Outcome
    logprob: float


@dataclass(frozen=True, slots=True)
class Solved:
    """What a strategy made of a question.

    `trajectory` holds every call once, so that `measure` counts the whole strategy. `response` is what is judged: a
    finished response with its eos, as `Trajectory.root_ids` gives it; `()` where nothing finished.
    """

    trajectory: Trajectory
    response: Ids


class FixedStrategy(Protocol):
    """A baseline. The same seed gives the same result, whatever order an engine serves calls in."""

    async def solve(self, setting: Setting, question: Question, seed: int) -> Solved:
        """Raises EngineError when the engine cannot serve, StrategyError when the question does not suit."""
        ...


def finished(trajectory: Trajectory) -> Ids:
    """What is judged of one response: what the root wrote, `()` where it did not finish."""
    return tuple(trajectory.root_ids()) if trajectory.outcome in ("answered", "forced_answer") else ()


def candidate(setting: Setting, question: Question, trajectory: Trajectory) -> Candidate:
    """What became of one independent trajectory."""
    response = finished(trajectory)
    answer = answer_in(setting, question, response)
    return Candidate(response, answer, trajectory.outcome, mean_logprob(trajectory))


def answer_in(setting: Setting, question: Question, response: Ids) -> str | None:
    """The answer of a response; None where it has none, or did not finish."""
    return question.answer(setting.tokens.decode(response[:-1])) if response else None


def mean_logprob(trajectory: Trajectory) -> float:
    """Over all sampled tokens, in nats; minus infinity without any."""
    return mean([value for segment in trajectory.segments for value in segment.logprobs or ()])


def mean(logprobs: Sequence[float]) -> float:
    """Their mean; minus infinity for none.

    >>> mean([-1.0, -3.0])
    -2.0
    """
    return sum(logprobs) / len(logprobs) if logprobs else float("-inf")


def filled(template: str, **slots: str) -> str:
    """The template with each `{name}` of `slots` filled in; braces in what is filled in stay as they are."""
    return re.sub("|".join(f"{{{name}}}" for name in slots), lambda found: slots[found[0][1:-1]], template)


def spell(tokens: Tokens, text: str, strategy: str) -> Ids:
    """A prompt made of text. Raises StrategyError where the vocabulary lacks a character of it."""
    try:
        return tokens.prompt(text)
    except TagError as error:
        raise StrategyError(
            f"strategy {strategy} writes a prompt that this vocabulary cannot spell ({text[:40]!r}): change its "
            "template options, or use a model that reads all text"
        ) from error


def client_answer(dialect: Dialect, tokens: Tokens, answer: str) -> Ids:
    """A response that the client writes: no reasoning, the answer, the end. Where a dialect reasons, `<think></think>`
    comes first, so that verifiers find the answer where they look for it."""
    if isinstance(dialect, Reasoning):
        return (dialect.think, *dialect.answer(answer))
    return (*tokens.text(answer), tokens.eos)
