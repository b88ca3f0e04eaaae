"""The rows of an evaluation: what is made of one model, each with its own way to sample and its own budgets."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from apr_train.config import Config, ConfigError
from apr_train.rollouts import Rollouts, budget_of
from rollout.options import read_options
from rollout.orchestrator import Strategy
from rollout.strategies import make_strategy
from rollout.strategies.writing import forbidden

POLICY = "policy"
"""The row of a model as it is."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row. What is None is as the configuration has it.

    >>> Row(search="self_consistency", options={"n": 4}, forks=False)
    """

    threads: Literal["fork_join", "group_think", "hogwild", "in_order"] | None = None
    """As strategy.name."""
    forks: bool | None = None
    """False: the tags that fork are never sampled."""
    search: str | None = None
    """A strategy of docs/strategies.md, as strategy.search."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    samples: int | None = None
    """Per problem, as eval.samples."""
    temperature: float | None = None
    max_response_tokens: int | None = None
    max_critical_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "max_response_tokens", "max_critical_tokens"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"a row of eval.rows has {name}={value!r}: give a whole number above 0")


def rows_of(config: Config) -> dict[str, Row]:
    """The rows by name: those of eval.rows, or the one that `strategy` describes. Raises ConfigError."""
    given: Mapping[str, Any] = config.eval.rows or {POLICY: {}}
    found: dict[str, Row] = {}
    for name, settings in given.items():
        if not name or "/" in name or name.startswith("."):
            raise ConfigError(f"eval.rows has a row {name!r}: rows are folders, name it with letters and digits")
        row = read_options(f"row {name} of eval.rows", Row, cast(Mapping[str, Any], settings or {}), ConfigError)
        found[name] = complete(config, row)
    return found


def complete(config: Config, row: Row) -> Row:
    """The row with nothing left open; what its search cannot take is refused here."""
    strategy, settings = config.strategy, config.eval
    search = row.search or strategy.search
    options = row.options or (dict(strategy.options) if row.search in (None, strategy.search) else {})
    make_strategy(search, options)
    return Row(
        threads=row.threads or cast(Any, strategy.name),
        forks=strategy.forks if row.forks is None else row.forks,
        search=search,
        options=options,
        samples=row.samples or settings.samples,
        temperature=settings.temperature if row.temperature is None else row.temperature,
        max_response_tokens=row.max_response_tokens or config.rollout.max_response_tokens,
        max_critical_tokens=row.max_critical_tokens or config.rollout.max_critical_tokens,
    )


def rollouts_of(config: Config, rollouts: Rollouts, row: Row) -> Rollouts:
    """The run's sampler and verifier, sampling as a complete row says."""
    banned = () if row.forks else forbidden(rollouts.dialect, rollouts.tokens.eos, "no_forks")
    threads = Strategy(cast(Any, row.threads), config.strategy.stride, config.model.thread_vectors > 0, banned)
    limits = {"max_response_tokens": row.max_response_tokens, "max_critical_tokens": row.max_critical_tokens}
    budget = budget_of(replace(config.rollout, **cast(dict[str, Any], limits)))
    assert row.search is not None
    search = None if row.search == "single" else make_strategy(row.search, row.options)
    return replace(rollouts, strategy=threads, budget=budget, search=search)
