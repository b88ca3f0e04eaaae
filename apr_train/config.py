"""The only schema: every key a user may set, its type, its default and what it means."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from rollout.errors import UserError


class ConfigError(UserError, ValueError):
    """The configuration cannot be used. One line: the key, what is wrong with it, the nearest valid one."""


@dataclass
class LoraConfig:
    """Trains small matrices beside frozen weights (docs/lora.md). There is no dropout: the trainer would score another
    policy than the one that was sampled."""

    rank: int = 0
    """0 trains all weights."""
    alpha: float = 32.0
    """What is added is alpha / rank times the product of the two matrices."""
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    """Layers by the ends of their names, e.g. [q_proj,v_proj]; all-linear: every linear layer but the output."""
    tags: bool = True
    """Train the dialect's tags in the embedding tables. Frozen, a new tag's logit, the mean of those of the tokens that
    spell it, never exceeds the highest of them; false is for a model that knows the tags."""
    whole: list[str] = field(default_factory=list[str])
    """Modules to train whole besides, by the ends of their names, e.g. [norm]; thread vectors always are."""


@dataclass
class ModelConfig:
    """Where the policy comes from: a Hugging Face folder or hub name, or the sizes of a fresh model."""

    path: str | None = None
    """Folder or hub name; null builds a fresh model of the sizes below."""
    revision: str | None = None
    dtype: str = "float32"
    """float32 | bfloat16"""
    attention: str = "tree"
    """tree (packed tries) | sdpa (one row per call: the oracle)"""
    gradient_checkpointing: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    thread_vectors: int = 0
    """For how many threads of a block each layer learns a vector (ParaThinker), added to keys and values; needs
    dialect.join=stitched and rollout=torch. 0: none"""
    architecture: str = "qwen3"
    """Of a fresh model: qwen3 | llama"""
    tokenizer: str | None = None
    """Of a fresh model: folder or hub name; null reads characters."""
    vocabulary: int | None = None
    """Of a fresh model: rows of its embeddings, e.g. a multiple of 64; null is what the tokenizer and its tags need."""
    tied: bool = True
    """Of a fresh model: one table for input and output embeddings."""
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 32
    intermediate_size: int = 256
    max_context: int = 1024
    """Longest prompt + response in tokens, for the sampler and the trainer alike."""
    rope_theta: float = 10000.0
    initializer_range: float = 0.05
    """Standard deviation of fresh weights. 0.05 learns the toy about twice as fast as the usual 0.02 at this width."""


@dataclass
class DataConfig:
    """Which task, and how many problems of it."""

    task: str = MISSING
    """arithmetic | multiplication | countdown | countdown_search (dialect=apr) | jsonl | corpus | reasoning_gym |
    sorting | set_intersection"""
    train_problems: int = 4096
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """The task's own settings, checked against the task's dataclass."""


PUBLIC_MASKS = {
    "multiverse": "multiverse",
    "npr": "npr",
    "parallel_r1_seen": "parallel_r1",
    "parallel_r1_unseen": "parallel_r1",
}
"""The public trainers whose masks `dialect.mask` can name, and the dialect that each reads."""


@dataclass
class DialectConfig:
    """The tag grammar."""

    name: str = "threadweaver"
    """threadweaver | parason | multiverse | npr | parallel_r1 | dc_cot | parathinker | apr | asyncthink | recursive |
    sequential (tags are never structure), or one of yours as path/to/file.py:Class (docs/dialects.md)"""
    join: str | None = None
    """What the parent reads after a block; null is the dialect's own. transcript (flat, any engine) | stitched (threads
    stay hidden from each other and share positions: rollout=torch) | message (only what the client passes on)"""
    mask: str = "exact"
    """What the trainer scores a response under: exact (what was sampled) | multiverse | npr | parallel_r1_seen |
    parallel_r1_unseen (that public trainer's masks and positions, whose gap to the sampler is logged as any other)"""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """The dialect's own settings, e.g. paths: 2 for parallel_r1; checked against its Options."""


@dataclass
class StrategyConfig:
    """How the threads of a block are sampled."""

    name: str = "fork_join"
    """fork_join (each as the dialect's join says) | group_think (in lockstep, each sees the others' earlier tokens) |
    hogwild (the same, over one shared cache in which every reader has its own positions; sampling only) | in_order (one
    after the other, each sees those before it; evaluations only)"""
    stride: int | None = None
    """group_think: how many positions apart threads start; null is as far as the longest of them may get, for dialects
    of one block only: all blocks of a trajectory have one stride."""
    forks: bool = True
    """False, in evaluations: the tags that fork are never sampled."""
    search: str = "single"
    """In evaluations: what is made of several samples, by its name in docs/strategies.md. Training is `single`."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of the search."""


@dataclass
class RewardConfig:
    """R = sum over terms of weight * schedule(step) * gate * clip(term); docs/rewards.md tells the story."""

    terms: dict[str, Any] = field(default_factory=dict[str, Any])
    """By name. `kind` (default: the name) is one of KINDS in rewards/build.py; a term's own settings are the fields of
    its class. Any term takes: weight; gate, a list of correct | wrong | parallel | sequential | well_formed |
    malformed; floor and cap, which clip the term before the weight; standardise (z-score in the group); schedule
    (rewards/schedule.py); scope all | root | threads, whose calls it rewards."""


@dataclass
class AlgorithmConfig:
    """GRPO over call rows; token-normalised losses only."""

    loss: str = "dapo"
    """dapo | cispo"""
    baseline: str = "group_mean"
    """group_mean | leave_one_out (the mean of the group's other members)"""
    scale_rewards: str = "none"
    """none (P-GRPO) | group (GRPO, divides by the group's standard deviation) | batch (PAPO, by the whole step's)"""
    apart: bool = False
    """Baseline and scale the terms that judge the answer and all others apart, then add the two advantages."""
    credit: str = "broadcast"
    """Who gets a trajectory's advantage: broadcast (every call) | root_only (threads 0) | frozen_threads (threads are
    no training rows) | ratio_scaled (SELFCEST) | node_local (RAO, needs a node_success term) | per_call_mean (APR)"""
    dynamic_sampling: int = 0
    """How often at most a step's groups of equal rewards are drawn again, with other prompts; 0 keeps them."""
    learning_rate: float = 1e-6
    lr_schedule: str = "constant"
    """constant | linear | cosine, after the warm-up; the latter two end at 0"""
    warmup_steps: int = 0
    steps: int = 100
    prompts_per_step: int = 16
    """Over all ranks."""
    group_size: int = 8
    micro_batches: int = 1
    """Gradient-accumulation micro-batches per rank and step; the loss does not depend on it."""
    epsilon_low: float = 0.2
    epsilon_high: float = 0.28
    max_grad_norm: float = 1.0
    """Of GRPO and of the warm start."""
    weight_decay: float = 0.0
    gap_warn: float = 0.02
    """Warn when mean |log p_sampler - log p_trainer| exceeds this (nats); bf16 engines sit near 0.01."""
    gap_stop: float = 0.5
    """Stop the run above this."""


@dataclass
class SftConfig:
    """Warm start on demonstrations; steps = 0 skips it."""

    steps: int = 0
    problems_per_step: int = 24
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.0
    parallel_share: float = 0.5
    """Share of demonstrations written in the parallel form, among problems of two parts and more."""
    checked_share: float = 0.0
    """Share written in sequence with threads that only repeat results, to study rewards that useless threads can game;
    data.task=arithmetic has this form."""


@dataclass
class SelfTrainConfig:
    """scripts/self_train.py: sample the training problems, keep what is right and strictly well-formed, train on it."""

    rounds: int = 3
    samples_per_problem: int = 4
    keep_per_problem: int | None = 1
    """At most so many of a problem, those of the shortest critical path; null keeps all that differ."""
    max_critical: int | None = None
    """Keep no trajectory whose L_critical (tokens) is above this."""
    min_eta: float | None = None
    """Keep no trajectory whose acceleration ratio is below this; above 0 that leaves out all that do not fork."""
    source: str = "start"
    """What each round trains: start (the run's own start, anew, as published) | last (the model of the round before). A
    model made from scratch needs `last`, or `steps` near sft.steps."""
    steps: int | None = None
    """Updates per round, of sft.problems_per_step trajectories; null goes once through what was kept."""
    learning_rate: float | None = None
    """null is sft.learning_rate; source=last needs less, for it goes on from a trained model with a fresh optimizer."""
    batch_problems: int = 64
    """Progress is saved after the samples of so many problems. The weights are loaded again before each batch, so that
    a resumed run samples what an uninterrupted one does: take more for a large model."""


@dataclass
class RolloutConfig:
    """The sampler and its budgets. Budgets are in tokens of the response; null means no limit but the context."""

    engine: str = "auto"
    """auto (vllm, or torch where vLLM cannot: stitched joins, threads that see each other) | vllm (in this process) |
    vllm_http (a running server) | torch (plain transformers in this process)"""
    urls: list[str] = field(default_factory=list[str])
    """vllm_http only, e.g. [http://127.0.0.1:8000/v1]; of several servers, rank r asks number r modulo their count, and
    the weights go to all. The token is the environment's VLLM_API_KEY, which an address of another machine needs; never
    part of the address."""
    temperature: float = 1.0
    max_response_tokens: int = 768
    """L_total may not exceed this."""
    max_critical_tokens: int | None = None
    """L_critical may not exceed this."""
    max_threads: int = 8
    """Threads per block; a fork of more is malformed."""
    max_blocks: int = 16
    """Blocks per thread, the root included; a fork beyond is malformed."""
    max_depth: int = 4
    """How deep threads may fork, the root's being 1; a fork below is malformed."""
    max_thread_tokens: int | None = None
    """Sampled tokens of one thread; a thread that reaches it is closed and the parent goes on."""
    answer_tokens: int = 32
    """Kept back so that a response out of budget can still close its reasoning and answer."""
    max_in_flight: int = 256
    """Calls the engine decodes at once."""
    engine_restarts: int = 3
    """How often at most an engine that dies in a stage is brought back; the next time the run stops, saved."""
    call_seconds: float = 600.0
    """vllm_http only: a server that has not answered a call, or taken the weights, in so many seconds is dead."""
    gpu_memory_utilization: float = 0.45
    kv_cache_gib: float = 1.0
    """CPU only: size of the key/value cache."""


@dataclass
class DeepspeedConfig:
    """ZeRO stage; null trains without DeepSpeed (one rank, or DDP)."""

    stage: int | None = None
    """null | 0 | 1 | 2 | 3"""
    offload_optimizer: bool = False


@dataclass
class GuardConfig:
    """When a step goes wrong (docs/guards.md)."""

    bad_steps: int = 3
    """The run stops, saved, at so many steps in a row whose loss or gradient is no number; each is skipped and written
    to <output_dir>/bad_steps."""
    halvings: int = 3
    """How often micro-batches are halved at most when they do not fit into memory."""


@dataclass
class CheckpointConfig:
    """What SFT and GRPO save on the way, below <output_dir>/checkpoints; a start with `resume=auto` goes on from it."""

    every: int = 50
    """Steps between two checkpoints; 0 saves only when the run is told to stop."""
    keep_last: int = 2
    keep_best: str | None = None
    """A metric, e.g. reward/total (docs/metrics.md): the checkpoint before which its mean was highest is kept too."""


@dataclass
class DeadlineConfig:
    """Seconds that a wait may take before the run says where it hangs and ends; 0: for ever."""

    engine_start: float = 1200.0
    rollout: float = 3600.0
    """All rollouts of one step, or of one held-out evaluation."""
    verify: float = 600.0
    sync: float = 1200.0
    """The weights, from the trainer to the sampler."""
    update: float = 3600.0
    """Forward, backward and optimizer of one step, and each exchange between ranks in between; rollouts and what else
    has a deadline of its own do not count."""
    collective: float = 5400.0
    """One exchange between ranks which may be apart by all of a rollout and its verdicts: longer than both; and a
    checkpoint."""


@dataclass
class ClusterConfig:
    """Where `dry_run=true` shows how to start the run; a run itself does not read it."""

    launcher: str = "none"
    """none | slurm"""
    nodes: int = 1
    gpus_per_node: int = 0
    """A rank each; 0: one rank a node, on its CPU."""
    server_nodes: int = 0
    """rollout=vllm_http only: the last so many of the nodes run its servers, one a GPU, and train nothing."""
    time: str = "24:00:00"
    """Of one start; what it leaves is done by the next."""
    partition: str | None = None
    account: str | None = None


@dataclass
class LoggerConfig:
    """Where metrics go."""

    wandb: str = "offline"
    """online | offline | disabled"""
    project: str = "adaptive-parallel-reasoning"
    group: str | None = None
    """W&B shows the runs of one group together: give the runs of a sweep the same one."""
    tensorboard: bool = False
    """Write events to <output_dir>/tensorboard as well; `tensorboard --logdir` shows them, without an account."""
    progress: bool = True
    rollouts_every: int = 10
    """Write all trajectories of every n-th step to rollouts-rank<r>.jsonl; 0 writes none."""
    panel_every: int = 0
    """Show a few dozen trajectories of every n-th step in W&B, as scripts/view_rollouts.py does; 0 shows none."""


@dataclass
class EvalConfig:
    """Held-out evaluation at the end of SFT and of RL, and of scripts/evaluate.py."""

    problems: int = 500
    """Held-out problems; 0 skips it."""
    samples: int = 1
    """Of each problem."""
    temperature: float = 1.0
    batch_problems: int = 0
    """How many at once, on all ranks; what a batch found is kept when the run is stopped or killed. 0: all."""
    record: int = 0
    """Trajectories of so many problems are written to rollouts.jsonl, for scripts/view_rollouts.py."""
    alone: int = 0
    """scripts/evaluate.py: so many problems are sampled once more, one at a time: the wall clock of a single user."""
    rows: dict[str, Any] = field(default_factory=dict[str, Any])
    """scripts/evaluate.py: what is made of the model, by name: threads, forks, search, options, samples, temperature,
    max_response_tokens, max_critical_tokens of each; empty is one row, as `strategy` says."""


@dataclass
class Config:
    """The whole run. `scripts/train.py --cfg job --resolve` prints it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    dialect: DialectConfig = field(default_factory=DialectConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    self_train: SelfTrainConfig = field(default_factory=SelfTrainConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    deepspeed: DeepspeedConfig = field(default_factory=DeepspeedConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    deadline: DeadlineConfig = field(default_factory=DeadlineConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    name: str = "run"
    """The run's name; its folder is outputs/<name>."""
    output_dir: str = "outputs/${name}"
    seed: int = 0
    resume: str = "auto"
    """auto (go on where a run of this name and these settings came to) | never (start it anew) | force (go on although
    settings, problems or ranks differ)"""
    dry_run: bool = False
    """Print the resolved configuration and the plan, then exit."""
