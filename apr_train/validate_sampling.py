"""What a configuration may ask of its sampler: strategy, budgets, servers, and how long ranks wait for it."""

import math
from typing import TYPE_CHECKING, Any

from apr_train.config import Config, ModelConfig, RolloutConfig
from apr_train.sampler import join_of
from apr_train.values import check_url
from apr_train.values import need as _need

if TYPE_CHECKING:
    from rollout.dialects.tagged import Grammar


def grammar_of(config: Config) -> "Grammar | None":
    """Of a dialect that is its tags; None for the others."""
    from rollout.dialects import dialect_class  # here: it takes seconds, which a misspelt key need not wait for
    from rollout.dialects.tagged import Tagged

    cls: Any = dialect_class(config.dialect.name)
    return cls.grammar(cls.read_options(config.dialect.options)) if issubclass(cls, Tagged) else None


def check_strategy(config: Config) -> None:
    """Whether the engine and the dialect can sample threads so. Raises ConfigError."""
    strategy, engine = config.strategy, config.rollout.engine
    if strategy.name == "in_order":
        _need(
            join_of(config) == "transcript" and not config.dialect.options.get("first_finish"),
            f"strategy=in_order writes blocks as one text, which dialect {config.dialect.name} with join "
            f"{join_of(config)} does not: take dialect.join=transcript, without races",
        )
    if strategy.name in ("fork_join", "in_order"):
        return
    grammar = grammar_of(config)
    _need(
        join_of(config) == "transcript" and grammar is not None and not grammar.nests and not grammar.trial,
        f"strategy={strategy.name} needs a join that reads a block as text, and threads that neither fork nor race, "
        f"not {config.dialect.name} with join {join_of(config)}: take dialect=threadweaver or parathinker",
    )
    _need(
        strategy.name != "group_think" or strategy.stride is not None or (grammar is not None and grammar.begins),
        f"strategy=group_think needs strategy.stride with dialect {config.dialect.name}, which may fork again: all "
        "blocks have one, as far as a thread may get (rollout.max_thread_tokens and its header)",
    )
    _need(
        strategy.name != "group_think" or (strategy.stride or 0) < config.model.max_context,
        f"strategy.stride={strategy.stride} puts a second thread beyond model.max_context={config.model.max_context}, "
        "so that no block would ever run",
    )
    _need(
        not config.dialect.options.get("first_finish"),
        f"strategy={strategy.name} cannot cut threads at the first one's end: set dialect.options.first_finish=false",
    )
    _need(
        engine in ("auto", "torch"),
        f"rollout.engine={engine} cannot show threads to each other while they are sampled: use rollout=torch",
    )
    _need(
        config.model.attention == "tree",
        f"model.attention={config.model.attention} reads flat rows, not strategy={strategy.name}: use tree",
    )
    _need(
        strategy.name != "hogwild" or not (config.algorithm.steps or config.sft.steps),
        "strategy=hogwild samples only, its positions differ from reader to reader: set algorithm.steps=0 and "
        "sft.steps=0, or train with strategy=group_think",
    )


def check_trainable(config: Config) -> None:
    """Refuses what only an evaluation may do: to train, a policy must be sampled as it is, and its weights must move.
    Raises ConfigError."""
    strategy = config.strategy
    _need(
        config.model.dtype != "bfloat16" or config.deepspeed.stage is not None,
        "to train, model.dtype=bfloat16 needs deepspeed=zero0 to zero3, which keep float32 master weights: without "
        "them small updates round to nothing",
    )
    _need(
        strategy.name != "in_order" and strategy.forks and strategy.search == "single" and not config.eval.rows,
        f"strategy (name={strategy.name}, forks={strategy.forks}, search={strategy.search}) or eval.rows is for "
        "scripts/evaluate.py: a policy is trained as it is sampled, with strategy=fork_join, group_think or hogwild",
    )


def check_rollout(rollout: RolloutConfig, model: ModelConfig, *, flat: bool) -> None:
    """Budgets and addresses. `flat`: the root reads all that its threads wrote, so a response must fit the context.
    Raises ConfigError."""
    longest = rollout.max_response_tokens
    _need(
        not flat or longest < model.max_context,
        f"rollout.max_response_tokens={longest} leaves no room for a prompt in model.max_context={model.max_context}",
    )
    for key, limit in (("max_response_tokens", longest), ("max_critical_tokens", rollout.max_critical_tokens)):
        _need(
            limit is None or rollout.answer_tokens < limit,
            f"rollout.answer_tokens={rollout.answer_tokens} must be below rollout.{key}={limit}",
        )
    _need(
        rollout.gpu_memory_utilization < 1,
        f"rollout.gpu_memory_utilization={rollout.gpu_memory_utilization} must be below 1: the trainer needs the rest",
    )
    urls = rollout.urls
    if rollout.engine == "vllm_http":
        _need(bool(urls), "rollout.urls is empty: vllm_http needs its servers, e.g. [http://127.0.0.1:8000/v1]")
        _need(len(set(urls)) == len(urls), "rollout.urls names a server twice: name each once, ranks share them")
        for url in urls:
            check_url(url)
    else:
        _need(not urls, f"rollout.urls={urls} is only for rollout=vllm_http")


def check_servers(config: Config, ranks: int) -> None:
    """Whether every server has a rank that asks it. Raises ConfigError."""
    serving = config.cluster.server_nodes
    _need(
        not serving or (serving < config.cluster.nodes and config.rollout.engine == "vllm_http"),
        f"cluster.server_nodes={serving} needs rollout=vllm_http, and must be below "
        f"cluster.nodes={config.cluster.nodes}",
    )
    _need(
        len(config.rollout.urls) <= ranks,
        f"rollout.urls names {len(config.rollout.urls)} servers, more than there are ranks ({ranks}): drop some, or "
        "start more ranks",
    )


def check_waits(config: Config) -> None:
    """Whether a wait can end by itself before a deadline ends the run unsaved. Raises ConfigError."""
    wait = config.deadline
    _need(
        not wait.collective or (wait.rollout * wait.verify > 0 and wait.collective >= wait.rollout + wait.verify),
        f"deadline.collective={wait.collective:g} must be at least deadline.rollout + deadline.verify, by which ranks "
        "may be apart, or 0",
    )
    _need(
        config.rollout.engine != "vllm_http" or not wait.collective or 0 < wait.sync <= wait.collective,
        f"deadline.collective={wait.collective:g} must be at least deadline.sync, in which one rank "
        "sends the weights, or 0",
    )
    shortest, call = min(wait.rollout or math.inf, wait.sync or math.inf), config.rollout.call_seconds
    _need(
        config.rollout.engine != "vllm_http" or call < shortest,
        f"rollout.call_seconds={call:g} must be below deadline.rollout and deadline.sync, which end the run unsaved",
    )
