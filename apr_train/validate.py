"""Refuses a configuration that cannot train rightly, in one line, before any time is spent."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

from apr_train.config import PUBLIC_MASKS, AlgorithmConfig, Config, ConfigError, ModelConfig
from apr_train.sampler import join_of
from apr_train.validate_sampling import check_rollout, check_servers, check_strategy, check_waits, grammar_of
from apr_train.values import check_values
from apr_train.values import need as _need
from rewards.build import make_reward
from rewards.errors import RewardError
from rollout.engines.bearer import VARIABLE
from rollout.errors import nearest
from rollout.shown import secret_in

CHOICES: dict[str, tuple[str, ...]] = {
    "data.task": (
        *("arithmetic", "multiplication", "countdown", "countdown_search", "sorting", "set_intersection"),
        *("jsonl", "corpus", "reasoning_gym"),
    ),
    "algorithm.baseline": ("group_mean", "leave_one_out"),
    "algorithm.scale_rewards": ("none", "group", "batch"),
    "algorithm.credit": (*("broadcast", "root_only", "frozen_threads", "ratio_scaled", "node_local", "per_call_mean"),),
    "algorithm.lr_schedule": ("constant", "linear", "cosine"),
    "dialect.mask": ("exact", *PUBLIC_MASKS),
    "rollout.engine": ("auto", "vllm", "vllm_http", "torch"),
    "strategy.name": ("fork_join", "group_think", "hogwild", "in_order"),
    "resume": ("auto", "never", "force"),
    "cluster.launcher": ("none", "slurm"),
    "logger.wandb": ("online", "offline", "disabled"),
    "self_train.source": ("start", "last"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": ("tree", "sdpa"),
    "model.architecture": ("qwen3", "llama"),
}
AT_LEAST: dict[int, tuple[str, ...]] = {
    0: (
        *("seed", "data.seed"),
        *("algorithm.steps", "algorithm.warmup_steps", "algorithm.weight_decay", "checkpoint.every"),
        *("algorithm.dynamic_sampling", "model.thread_vectors", "model.lora.rank"),
        *("sft.steps", "sft.warmup_steps", "sft.weight_decay"),
        *("deadline.engine_start", "deadline.rollout", "deadline.verify", "deadline.sync", "deadline.update"),
        *(
            "deadline.collective",
            "cluster.gpus_per_node",
            "cluster.server_nodes",
            "guard.halvings",
            "rollout.engine_restarts",
        ),
        *("logger.rollouts_every", "logger.panel_every"),
        *("eval.problems", "eval.temperature", "eval.batch_problems", "eval.record", "eval.alone"),
    ),
    1: (
        *("model.hidden_size", "model.layers", "model.heads", "model.kv_heads", "model.head_dim"),
        *("model.intermediate_size", "model.max_context", "model.vocabulary", "data.train_problems"),
        "strategy.stride",
        *("algorithm.prompts_per_step", "algorithm.micro_batches", "sft.problems_per_step"),
        *("rollout.max_response_tokens", "rollout.max_critical_tokens", "rollout.max_threads", "rollout.max_blocks"),
        *("rollout.max_depth", "checkpoint.keep_last", "cluster.nodes", "guard.bad_steps"),
        *("self_train.rounds", "self_train.samples_per_problem", "self_train.keep_per_problem"),
        *("self_train.max_critical", "self_train.steps", "self_train.batch_problems"),
        *("rollout.max_thread_tokens", "rollout.answer_tokens", "rollout.max_in_flight"),
    ),
    2: ("algorithm.group_size",),
}
ABOVE_ZERO = (
    *("algorithm.learning_rate", "algorithm.epsilon_low", "algorithm.epsilon_high", "algorithm.max_grad_norm"),
    *("algorithm.gap_warn", "algorithm.gap_stop", "sft.learning_rate", "model.rope_theta", "model.lora.alpha"),
    "model.initializer_range",
    *("rollout.temperature", "rollout.kv_cache_gib", "rollout.gpu_memory_utilization", "rollout.call_seconds"),
)
REASONS = {
    "algorithm.group_size": "an advantage compares rollouts of one prompt",
    "rollout.temperature": "training needs samples of the policy; greedy decoding belongs to eval.temperature=0",
}

ROW_MEAN = "it averages within each row first, and a row is one call: tokens of short calls would weigh more"
WRONG_LOSSES = {
    "grpo": ROW_MEAN,
    "sapo": ROW_MEAN,
    "luspo": "it averages over rows, and a trajectory has as many rows as calls: forking would buy weight",
    "bnpo": "it divides by the tokens of one micro-batch: the update would depend on how rows are split",
    "dr_grpo": "it divides by the number of rows: one trajectory's fork would shrink every other's gradient",
    "vespo": "it weighs by the ratio of a whole row, and a row is one call, not a trajectory",
}


def validate(config: Config, ranks: int = 1) -> None:
    """Checks meaning (types are the schema's). Reads no file but a reward's baseline, and looks
    whether there is one where the output folder is to be. ConfigError at the first breach.

    >>> validate(config, ranks=2)  # algorithm.prompts_per_step=3 must be a multiple of the number of ranks, 2
    """
    _check_secrets(config)
    check_values(config)
    _check_dialect(config)
    for key, options in CHOICES.items():
        _one_of(key, attrgetter(key)(config), options)
    for least, keys in AT_LEAST.items():
        for key in keys:
            value = attrgetter(key)(config)
            _need(value is None or value >= least, f"{key}={value} must be at least {least}{_reason(key)}")
    for key in ABOVE_ZERO:
        value = attrgetter(key)(config)
        _need(value > 0, f"{key}={value} must be above 0{_reason(key)}")
    parallel, checked = config.sft.parallel_share, config.sft.checked_share
    _need(0.0 <= parallel <= 1.0, f"sft.parallel_share={parallel} must be in [0, 1]")
    _need(0.0 <= checked <= 1.0 - parallel, f"sft.checked_share={checked} must be in [0, 1 - sft.parallel_share]")
    eta, rate = config.self_train.min_eta, config.self_train.learning_rate
    _need(rate is None or rate > 0, f"self_train.learning_rate={rate} must be above 0")
    _need(eta is None or 0.0 <= eta < 1.0, f"self_train.min_eta={eta} must be in [0, 1)")
    _need(
        config.cluster.launcher == "none" or config.dry_run,
        "cluster=slurm starts nothing by itself: add dry_run=true, and type the sbatch command that it prints",
    )
    _check_reward(config)
    _check_scratch(config.model)
    check_rollout(config.rollout, config.model, flat=join_of(config) != "message")
    check_servers(config, ranks)
    check_waits(config)
    _check_problems(config, ranks)
    _check_algorithm(config.algorithm, ranks)
    _check_deepspeed(config)


def check_model_folder(model: ModelConfig) -> None:
    """Refuses a `model.path` that names a folder which is no model folder, or whose model is shorter than
    `model.max_context`. A hub name (`name`, `owner/name`) is left to the hub, unless its first part is a folder here:
    `outputs/typo` is a slip, not an owner. Raises ConfigError."""
    if model.path is None:
        return
    key, folder = f"model.path={model.path}", Path(model.path).expanduser()
    if not folder.exists():
        deep = model.path.count("/") > 1 or Path(folder.parts[0]).exists()
        local = deep or model.path.startswith(("/", ".", "~"))
        _need(not local, f"{key}: there is no such folder (SmolLM2: run scripts/fetch_smollm2.py first)")
        return
    _need(folder.is_dir(), f"{key} is a file; name the folder that holds config.json and the weights")
    for what, patterns in {
        "config.json": ["config.json"],
        "weights (*.safetensors or *.bin)": ["*.safetensors", "*.bin"],
        "tokenizer files": ["tokenizer*", "vocab*"],
    }.items():
        found = any(any(folder.glob(pattern)) for pattern in patterns)
        _need(found, f"{key} is not a model folder: it has no {what}")
    try:
        read: object = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ConfigError(f"{key}: config.json is not JSON ({error})") from error
    if not isinstance(read, dict):
        raise ConfigError(f"{key}: config.json must hold an object, not a {type(read).__name__}")
    longest = read.get("max_position_embeddings")
    if longest is None:
        return  # an architecture that does not name its limit
    if not isinstance(longest, int):
        raise ConfigError(f"{key}: max_position_embeddings in config.json is {longest!r}, not a whole number")
    _need(
        model.max_context <= longest,
        f"model.max_context={model.max_context} is longer than the model's own {longest} positions; lower it",
    )


def _reason(key: str) -> str:
    return f": {REASONS[key]}" if key in REASONS else ""


def _one_of(key: str, value: str, options: tuple[str, ...]) -> None:
    near = nearest(value, options)
    hint = f"did you mean {near}? " if near else ""
    _need(value in options, f"{key}={value} does not exist: {hint}(known: {', '.join(options)})")


def _check_reward(config: Config) -> None:
    try:
        reward = make_reward(config.reward.terms)
    except RewardError as error:
        raise ConfigError(str(error)) from error
    _need(
        config.algorithm.credit != "node_local" or reward.node_bonus is not None,
        "algorithm.credit=node_local needs a term of kind node_success: take reward=rao",
    )


def _check_dialect(config: Config) -> None:
    """The dialect itself, its options, and whether the engine and the trainer can do its join."""
    from rollout.dialects import dialect_class  # here: it takes seconds, which a misspelt key need not wait for
    from rollout.dialects.base import DialectError

    dialect = config.dialect
    try:
        cls = dialect_class(dialect.name)
        cls.tags(dialect.options)
    except DialectError as error:
        where = "" if str(error).startswith("dialect.name=") else f"dialect.name={dialect.name}: "
        raise ConfigError(f"{where}{error}") from error
    check_strategy(config)
    _check_mask(config)
    join = dialect.join or cls.joins[0]
    _one_of("dialect.join", join, cls.joins)
    _check_vectors(config, join, cls.joins)
    if join == "stitched":
        others = [other for other in cls.joins if other != join]
        _need(
            config.rollout.engine in ("auto", "torch"),
            f"rollout.engine={config.rollout.engine} cannot sample a stitched join, which hides threads from each "
            f"other: use rollout=torch, or dialect.join={others[0]}",
        )
        _need(
            config.model.attention == "tree",
            f"model.attention={config.model.attention} reads flat rows, not a stitched join: use model.attention=tree",
        )


def _most_threads(config: Config) -> int:
    """The most threads that a block may have: the dialect's fixed number, or what the client grants."""
    grammar = grammar_of(config)
    return (grammar and grammar.threads) or config.rollout.max_threads


def _check_vectors(config: Config, join: str, joins: Sequence[str]) -> None:
    count, engine = config.model.thread_vectors, config.rollout.engine
    if count <= 0:  # below 0 is refused with the other numbers
        return
    key = f"model.thread_vectors={count}"
    how = config.strategy.name
    _need(how == "fork_join", f"{key}: strategy={how} has no vectors: set strategy=fork_join, or 0 vectors")
    can = "set dialect.join=stitched" if "stitched" in joins else "take a dialect that has one, e.g. parathinker, or 0"
    _need(join == "stitched", f"{key}: only a stitched join keeps a thread's keys: {can}")
    _need(engine in ("auto", "torch"), f"{key}: rollout.engine={engine} cannot add them: use rollout=torch")
    mask = config.dialect.mask
    _need(mask == "exact", f"{key} cannot be combined with dialect.mask={mask}: set dialect.mask=exact, or 0 vectors")
    threads = _most_threads(config)
    few = f"{key} is less than the {threads} threads that a block may have: raise it, or lower their number"
    _need(count >= threads, few)


def _check_mask(config: Config) -> None:
    """Whether the trainer that is to be reproduced reads this dialect."""
    mask, name = config.dialect.mask, config.dialect.name
    _one_of("dialect.mask", mask, CHOICES["dialect.mask"])
    if mask == "exact":
        return
    reads = PUBLIC_MASKS[mask]
    _need(
        name == reads,
        f"dialect.mask={mask} is for dialect.name={reads}, not {name}: use dialect={mask}_as_published, or mask=exact",
    )
    _need(config.model.attention == "tree", f"dialect.mask={mask} needs model.attention=tree")
    _need(config.strategy.name == "fork_join", f"dialect.mask={mask} needs strategy=fork_join")


def _check_scratch(model: ModelConfig) -> None:
    if model.path is not None:
        return
    _need(model.heads % model.kv_heads == 0, f"model.heads={model.heads} must be a multiple of model.kv_heads")
    _need(model.head_dim % 2 == 0, f"model.head_dim={model.head_dim} must be even: rotary positions turn pairs")


def _check_secrets(config: Config) -> None:
    """Settings are printed, logged and saved: none may hold a secret. Comes first, for later checks repeat values."""
    for key, value in _texts(asdict(config)):
        found = secret_in(value)
        _need(
            found is None,
            f"{key} holds {found}, and settings are written down: "
            + (f"put the token in {VARIABLE}" if key == "rollout.urls" else "put it in an environment variable"),
        )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of every text among nested settings, names of open ones included."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield key, str(name)
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value


def _check_algorithm(algorithm: AlgorithmConfig, ranks: int) -> None:
    loss = algorithm.loss
    if loss in WRONG_LOSSES:
        raise ConfigError(f"algorithm.loss={loss} is wrong here, use dapo or cispo: {WRONG_LOSSES[loss]}")
    _one_of("algorithm.loss", loss, ("dapo", "cispo"))
    if loss == "cispo":
        _need(
            algorithm.epsilon_high >= 1,
            f"algorithm.epsilon_high={algorithm.epsilon_high} would shrink every gradient: for cispo it is the largest "
            "importance weight itself, about 5",
        )
    else:
        _need(algorithm.epsilon_low < 1, f"algorithm.epsilon_low={algorithm.epsilon_low} must be below 1 (clip 1 - it)")
    _need(algorithm.gap_stop >= algorithm.gap_warn, "algorithm.gap_stop must not be below algorithm.gap_warn")
    prompts = algorithm.prompts_per_step
    _need(
        prompts // ranks % algorithm.micro_batches == 0,
        f"algorithm.micro_batches={algorithm.micro_batches} must divide a rank's {prompts // ranks} prompts a step: "
        "groups are never torn",
    )


def _check_problems(config: Config, ranks: int) -> None:
    train = config.data.train_problems
    for key, wanted in (
        ("algorithm.prompts_per_step", config.algorithm.prompts_per_step if config.algorithm.steps else 0),
        ("sft.problems_per_step", config.sft.problems_per_step if config.sft.steps else 0),
    ):
        _need(wanted <= train, f"{key}={wanted} is more than data.train_problems={train}")
        _need(wanted % ranks == 0, f"{key}={wanted} must be a multiple of the number of ranks, {ranks}")


def _check_deepspeed(config: Config) -> None:
    stage = config.deepspeed.stage
    _need(stage in (None, 0, 1, 2, 3), f"deepspeed.stage={stage} does not exist; use null, 0, 1, 2 or 3")
    if config.deepspeed.offload_optimizer:
        _need(stage not in (None, 0), f"deepspeed.offload_optimizer needs stage 1, 2 or 3, not {stage}")
