"""What a run would do and need, told before it does: model, engine, ranks, tokens per update, memory estimate."""

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from apr_train.config import Config, LoraConfig, ModelConfig, RewardConfig
from apr_train.sampler import engine_of, join_of

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
SCRATCH_VOCABULARY = 116
"""Characters, headers and tags of the tokenizer that a model from scratch gets; a few more or less do not matter."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What decides the memory of a Llama-like transformer (Qwen, SmolLM): layers, widths, vocabulary."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def parameters(self) -> int:
        """How many weights, without biases and q/k norms.

        Hidden 4, one head of 4, intermediate 8, vocabulary 10, one layer, tied: 40 + (4*16 + 3*32 + 2*4) + 4 = 212.
        """
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return tables + self.layers * layer + self.hidden

    def trained(self, lora: LoraConfig) -> int:
        """How many of them, or of LoRA's beside them, an update changes; a table counts whole, for its gradient and
        Adam's states are kept whole. `lora.whole` is not counted."""
        if not lora.rank:
            return self.parameters
        widths = {
            **dict.fromkeys(("q_proj", "o_proj"), self.hidden + self.heads * self.head_dim),
            **dict.fromkeys(("k_proj", "v_proj"), self.hidden + self.kv_heads * self.head_dim),
            **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), self.hidden + self.intermediate),
        }
        adapted = sum(width for name, width in widths.items() if lora.targets == ["all-linear"] or name in lora.targets)
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2) if lora.tags else 0
        return tables + self.layers * lora.rank * adapted

    def kv_bytes(self, width: int) -> int:
        """Key/value cache of one token in bytes, `width` bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * width

    def activation_bytes(self, width: int, checkpointing: bool) -> int:
        """Roughly what one token keeps for the backward pass, float32 logits and their gradient included."""
        layer = (8 * self.hidden + 2 * self.head_dim * (self.heads + self.kv_heads) + 4 * self.intermediate) * width
        kept = self.layers * self.hidden * width + layer if checkpointing else self.layers * layer
        return kept + 2 * 4 * self.vocabulary


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one rank. The first three are exact for Adam and the ZeRO stage, activations are a rough upper bound."""

    weights: float
    gradients: float
    adam: float
    activations: float
    sampler_weights: float
    kv_cache: float


def sizes_of(model: ModelConfig) -> Sizes | None:
    """From the keys of a model made from scratch, else from its config.json (folder or hub cache; nothing is
    downloaded); None when that is not here or names other things."""
    if model.path is None:
        return Sizes(
            *(model.layers, model.hidden_size, model.heads, model.kv_heads, model.head_dim),
            *(model.intermediate_size, model.vocabulary or SCRATCH_VOCABULARY, model.tied),
        )
    file = Path(model.path).expanduser() / "config.json"
    if not file.exists():
        cached = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
        if not isinstance(cached, str):
            return None
        file = Path(cached)
    read = json.loads(file.read_text())
    read = read.get("text_config", read)
    try:
        hidden, heads = read["hidden_size"], read["num_attention_heads"]
        return Sizes(
            layers=read["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=read.get("num_key_value_heads") or heads,
            head_dim=read.get("head_dim") or hidden // heads,
            intermediate=read["intermediate_size"],
            vocabulary=read["vocab_size"],
            tied=read.get("tie_word_embeddings", False),
        )
    except KeyError:
        return None


def memory(config: Config, sizes: Sizes, ranks: int) -> Memory:
    """The estimate for one rank. ZeRO-1 shards Adam's states, ZeRO-2 the gradients too, ZeRO-3 the weights too.

    Adam keeps two numbers a weight; DeepSpeed adds a float32 copy of the weights (12 bytes in all).
    """
    width, stage = BYTES[config.model.dtype], config.deepspeed.stage
    weights = sizes.parameters * width
    trained = sizes.trained(config.model.lora)
    adam = trained * (2 * width if stage is None else 12)
    here = engine_of(config) != "vllm_http"
    return Memory(
        weights=weights / (ranks if stage == 3 else 1),
        gradients=trained * width / (ranks if stage in (2, 3) else 1),
        adam=0.0 if config.deepspeed.offload_optimizer else adam / (ranks if stage else 1),
        activations=micro_batch_tokens(config, ranks)
        * sizes.activation_bytes(width, config.model.gradient_checkpointing),
        sampler_weights=weights if here else 0.0,
        kv_cache=config.rollout.kv_cache_gib * GIB if here else 0.0,
    )


def micro_batch_tokens(config: Config, ranks: int) -> int:
    """Most response tokens of one micro-batch: 16 prompts x 8 rollouts x 768 tokens on 2 ranks in 4 parts: 12,288."""
    algorithm = config.algorithm
    trajectories = algorithm.prompts_per_step * algorithm.group_size
    return trajectories * config.rollout.max_response_tokens // (ranks * algorithm.micro_batches)


def plan(config: Config, ranks: int) -> str:
    """The plan as text of at most 80 columns, one line a fact."""
    sizes = sizes_of(config.model)
    lines = [("model", _model(config.model, sizes)), *_adapters(config.model.lora, sizes)]
    lines += [*_work(config, ranks), *_memory(config, sizes, ranks)]
    return "\n".join(["plan", *(f"  {name:<20}{text}".rstrip() for name, text in lines)])


def _model(model: ModelConfig, sizes: Sizes | None) -> str:
    name = model.path or f"fresh {model.architecture.capitalize()}"
    name = name if len(name) <= 30 else f"...{name[-27:]}"
    count = f"about {_count(sizes.parameters)} parameters" if sizes else "size unknown"
    return f"{name}, {count}, {model.dtype}"


def _adapters(lora: LoraConfig, sizes: Sizes | None) -> list[tuple[str, str]]:
    if not lora.rank:
        return []
    tables = ", tables included" if lora.tags else ""
    count = f", {_count(sizes.trained(lora))} parameters{tables}" if sizes else ""
    return [("trained", f"LoRA of rank {lora.rank}{count}")]


def _work(config: Config, ranks: int) -> list[tuple[str, str]]:
    data, rollout, algorithm, sft = config.data, config.rollout, config.algorithm, config.sft
    trajectories = algorithm.prompts_per_step * algorithm.group_size
    zero = "no DeepSpeed" if config.deepspeed.stage is None else f"DeepSpeed ZeRO-{config.deepspeed.stage}"
    engine = {"vllm": "vLLM in each process", "torch": "torch in each process"}.get(
        engine_of(config), f"vLLM at {', '.join(rollout.urls)}"
    )
    most = trajectories * rollout.max_response_tokens
    return [
        ("data", f"{data.task}, {data.train_problems:,} problems, {config.eval.problems:,} held out"),
        ("dialect", f"{config.dialect.name}, {join_of(config)} join"),
        *_terms(config.reward),
        ("engine", engine),
        ("sampling", f"temperature {rollout.temperature:g}, at most {rollout.max_in_flight} calls at once"),
        ("ranks", f"{ranks}, {zero}"),
        ("SFT", f"{sft.steps:,} steps of {sft.problems_per_step} problems" if sft.steps else "none"),
        ("RL", f"{algorithm.steps:,} updates, loss {algorithm.loss}, scale_rewards {algorithm.scale_rewards}"),
        (
            "an update",
            f"{algorithm.prompts_per_step} prompts x {algorithm.group_size} rollouts = {trajectories} trajectories",
        ),
        ("tokens an update", f"at most {most:,} of responses, {most // ranks:,} a rank"),
        ("evaluation", f"{config.eval.problems} problems" if config.eval.problems else "none"),
        ("output", config.output_dir),
    ]


def _terms(reward: RewardConfig) -> list[tuple[str, str]]:
    """One line a term: its settings as they are written, its kind only where that is not its name."""
    lines: list[tuple[str, str]] = []
    for name, settings in reward.terms.items():
        written = ", ".join(f"{key} {_flat(value)}" for key, value in settings.items() if value != name)
        lines += [("", part) for part in textwrap.wrap(f"{name}: {written}" if written else name, 58)]
    return [("reward", lines[0][1]), *lines[1:]]


def _flat(value: object) -> str:
    return json.dumps(value).replace('"', "") if isinstance(value, dict | list) else str(value)


def _memory(config: Config, sizes: Sizes | None, ranks: int) -> list[tuple[str, str]]:
    if sizes is None:
        return [
            ("memory", "unknown: the model's config.json is not on this machine;"),
            ("", "download the model, or set model.path to its folder"),
        ]
    need = memory(config, sizes, ranks)
    rows = [
        ("weights", need.weights, ""),
        ("gradients", need.gradients, ""),
        ("Adam states", need.adam, ", in host memory" if config.deepspeed.offload_optimizer else ""),
        ("activations", need.activations, f", at most: {micro_batch_tokens(config, ranks):,} tokens at once"),
    ]
    lines = [("memory a rank", "(estimate)")]
    if engine_of(config) != "vllm_http":
        tokens = int(need.kv_cache // sizes.kv_bytes(BYTES[config.model.dtype]))
        rows += [
            ("sampler weights", need.sampler_weights, ""),
            ("sampler KV cache", need.kv_cache, f" on a CPU, {tokens:,} tokens"),
        ]
    lines += [(f"  {name}", f"{size / GIB:9.3f} GiB{note}") for name, size, note in rows]
    lines.append(("  together", f"{sum(size for _, size, _ in rows) / GIB:9.3f} GiB"))
    if engine_of(config) != "vllm_http":
        share = config.rollout.gpu_memory_utilization
        lines.append(("  on a GPU", f"the sampler takes {share:.0%} of its memory, weights included"))
    return lines


def _count(number: int) -> str:
    """1,234,567 -> 1.2 M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
