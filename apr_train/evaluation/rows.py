"""The rows of an evaluation: what is made of one model, each with its own way to sample and its own budgets."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from apr_train.config import Config, ConfigError
from apr_train.rollouts import Rollouts, budget_of
from apr_train.validate import validate
from rollout.options import read_options
from rollout.orchestrator import Strategy
from rollout.strategies import make_strategy
from rollout.strategies.tree_search import load_treequest
from rollout.strategies.writing import forbidden

POLICY = "policy"
"""The row of a model as it is."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row. What is None is as the configuration has it.

    >>> Row(search="self_consistency", options={"samples": 4}, forks=False)
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


WHOLE = ("single", "self_consistency", "best_of_n")
"""Searches whose responses are each sampled in one go, so that a limit of the critical path holds for all of it."""


def rows_of(config: Config, ranks: int = 1) -> dict[str, Row]:
    """The rows by name: those of eval.rows, or the one that `strategy` describes. Each is checked as a configuration of
    its own would be. Raises ConfigError."""
    given: Mapping[str, Any] = config.eval.rows or {POLICY: {}}
    found: dict[str, Row] = {}
    for name, settings in given.items():
        if not name or "/" in name or name.startswith("."):
            raise ConfigError(f"eval.rows has a row {name!r}: rows are folders, name it with letters and digits")
        row = read_options(f"row {name} of eval.rows", Row, cast(Mapping[str, Any], settings or {}), ConfigError)
        found[name] = complete(config, row)
        try:
            validate(_as_config(config, found[name]), ranks)
        except ConfigError as error:
            raise ConfigError(f"row {name}: {error}") from error
    return found


def _as_config(config: Config, row: Row) -> Config:
    """The configuration whose only row a complete row is."""
    asked = {"name": row.threads, "forks": row.forks, "search": row.search, "options": row.options}
    own = {name: getattr(row, name) for name in ("max_response_tokens", "max_critical_tokens")}
    return replace(
        config,
        strategy=replace(config.strategy, **cast(dict[str, Any], asked)),
        rollout=replace(config.rollout, **cast(dict[str, Any], own)),
        eval=replace(config.eval, rows={}, temperature=cast(float, row.temperature), samples=row.samples or 1),
        algorithm=replace(config.algorithm, steps=0),
        sft=replace(config.sft, steps=0),
    )


def complete(config: Config, row: Row) -> Row:
    """The row with nothing left open; what its search cannot take is refused here."""
    strategy, settings = config.strategy, config.eval
    search = row.search or strategy.search
    options = row.options or (dict(strategy.options) if row.search in (None, strategy.search) else {})
    make_strategy(search, options)
    critical = row.max_critical_tokens or config.rollout.max_critical_tokens
    if critical is not None and search not in WHOLE:
        raise ConfigError(
            f"search {search} samples in stages, and max_critical_tokens={critical} would bound each of them alone: "
            f"leave it out, or take one of {', '.join(WHOLE)}"
        )
    return Row(
        threads=row.threads or cast(Any, strategy.name),
        forks=strategy.forks if row.forks is None else row.forks,
        search=search,
        options=options,
        samples=row.samples or settings.samples,
        temperature=settings.temperature if row.temperature is None else row.temperature,
        max_response_tokens=row.max_response_tokens or config.rollout.max_response_tokens,
        max_critical_tokens=critical,
    )


def rollouts_of(config: Config, rollouts: Rollouts, row: Row) -> Rollouts:
    """The run's sampler and verifier, sampling as a complete row says. Raises ConfigError for a row that this dialect
    or this task cannot serve."""
    if not row.forks and rollouts.dialect.begin() is not None:
        raise ConfigError(
            f"dialect {rollouts.dialect.name} starts with threads that the client forks: forks stays true"
        )
    if rollouts.parts is None and (row.search == "graph_of_thoughts" or row.options.get("skeleton") == "task"):
        raise ConfigError(f"search {row.search} takes problems apart, which data.task={config.data.task} cannot")
    if row.search in ("mcts", "ab_mcts"):
        load_treequest(row.search)
    banned = () if row.forks else forbidden(rollouts.dialect, rollouts.tokens.eos, "no_forks")
    threads = Strategy(cast(Any, row.threads), config.strategy.stride, config.model.thread_vectors > 0, banned)
    limits = {"max_response_tokens": row.max_response_tokens, "max_critical_tokens": row.max_critical_tokens}
    budget = budget_of(replace(config.rollout, **cast(dict[str, Any], limits)))
    assert row.search is not None
    return replace(rollouts, strategy=threads, budget=budget, search=make_strategy(row.search, row.options))
