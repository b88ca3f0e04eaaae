"""Makes the plain Hugging Face folder that a run starts from: weights, tokenizer, and the dialect's tags as tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from apr_train.config import ModelConfig
from rollout.engines import thread_vectors
from rollout.errors import UserError, shortened
from rollout.tokens import Tokens, register_tags

REASONS = {
    "ignore_mismatched_sizes": "its weights have other shapes than its config.json says",
    "contains custom code": "it comes with Python of its own, which is never run: use a model that transformers knows",
    "Unrecognized configuration class": "it is no model that writes text on",
    "does not recognize this architecture": "transformers does not know its model_type",
    "Weights only load failed": "its *.bin is no plain weights file and is not run: use *.safetensors",
}
"""Words of what `from_pretrained` says, which is for those who call it, and what it means here."""


class ModelError(UserError, ValueError):
    """The model folder cannot be used (no model in it, context too short). Says what to change."""


def prepare_model_folder(config: ModelConfig, tags: Sequence[str], folder: Path, seed: int) -> None:
    """Writes model and tokenizer to `folder`, every tag being one special token.

    The embedding (and output row) of a new tag is the mean over the tokens its text had before, e.g. `<Thread>` over
    `<`, `Thread`, `>`. `path: null` builds a model of the configured sizes; warm-started
    folders that know the tags already are copied unchanged.
    """
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(config)
    tokens = Tokens(tokenizer)
    spelled = {tag: tokens.text(tag) for tag in tags}
    known = set(tokenizer.get_vocab())
    register_tags(tokenizer, tags)
    model = load_model(config, tokenizer)
    if len(tokenizer) > _table(model.get_input_embeddings()).shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = {id(table): table for table in map(_table, (model.get_input_embeddings(), model.get_output_embeddings()))}
    with torch.no_grad():
        for weight in tables.values():  # one table when input and output embeddings are tied
            for tag in tags:
                if tag not in known:
                    weight[tokens.tag(tag)] = weight[list(spelled[tag])].mean(0)
    if config.thread_vectors and not thread_vectors.count_of(model):
        thread_vectors.install(model, config.thread_vectors)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as draft:
        try:
            model.save_pretrained(draft)
        except ValueError as error:  # transformers checks these settings when they are written, not when they are read
            raise ModelError(f"model.path={config.path}: generation_config.json ({shortened(error)})") from error
        tokenizer.save_pretrained(draft)
        _move_over(Path(draft), folder)


def _move_over(draft: Path, folder: Path) -> None:
    """Each file at once: several servers of one run make the same folder while others read it."""
    files = [file.relative_to(draft) for file in draft.rglob("*") if file.is_file()]
    for weights in folder.glob("*.safetensors"):
        if weights.relative_to(folder) not in files:  # of another model that was here
            weights.unlink(missing_ok=True)
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (draft / file).replace(folder / file)


def _table(layer: torch.nn.Module | None) -> torch.nn.Parameter:
    assert layer is not None and isinstance(layer.weight, torch.nn.Parameter)  # a causal language model has both
    return layer.weight


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `config.path`, or that of a model made from scratch. Raises ModelError."""
    source = config.path or config.tokenizer
    if source is None:
        return character_tokenizer()
    with _one_line_errors(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=config.revision, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model of `config.path` in `config.dtype`, or a fresh one. Raises ModelError when it cannot be used."""
    dtype = getattr(torch, config.dtype)
    if config.path is None:
        return AutoModelForCausalLM.from_config(_scratch(config, tokenizer)).to(dtype)
    with _one_line_errors(config.path, "config.json"):
        architecture = AutoConfig.from_pretrained(config.path, revision=config.revision, trust_remote_code=False)
    if getattr(architecture, "quantization_config", None) is not None:
        raise ModelError(f"model.path={config.path} is quantised, which cannot be trained: take the full weights")
    longest = getattr(architecture, "max_position_embeddings", config.max_context)
    if longest < config.max_context:
        raise ModelError(f"model.max_context={config.max_context} is longer than the model's own {longest}: lower it")
    with _one_line_errors(config.path, "model"):
        loaded: Any = thread_vectors.load(config.path, revision=config.revision, dtype=dtype, output_loading_info=True)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"model.path={config.path}: its files hold no {missing[0]}, and {len(missing)} are missing in all"
        )
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ModelError(f"model.path={config.path}: {name} holds NaN or infinity; download or export it again")
    held = thread_vectors.count_of(model)
    if held not in (0, config.thread_vectors):
        raise ModelError(f"model.path={config.path} has vectors for {held} threads: set model.thread_vectors={held}")
    return model


@contextmanager
def _one_line_errors(path: str, what: str) -> Iterator[None]:
    """Turns what is raised into "model.path=here: cannot load its tokenizer (KeyError: 'added_tokens')"."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers, tokenizers, safetensors and torch raise many kinds: "no sound model"
        known = [reason for words, reason in REASONS.items() if words in str(error)]
        reason = known[0] if known else shortened(f"{type(error).__name__}: {error}")
        raise ModelError(f"model.path={path}: cannot load its {what} ({reason})") from error


def _scratch(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The sizes of a fresh model, in the words of its architecture."""
    rows = config.vocabulary or len(tokenizer)
    if rows < len(tokenizer):
        raise ModelError(
            f"model.vocabulary={rows} is less than the {len(tokenizer)} tokens of the tokenizer and its tags"
        )
    architectures: dict[str, Any] = {"qwen3": Qwen3Config, "llama": LlamaConfig}
    return architectures[config.architecture](
        vocab_size=rows,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_context,
        tie_word_embeddings=config.tied,
        initializer_range=config.initializer_range,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character or newline, and one for each header `1:` to `9:`; 107 in all."""
    characters = ["\n", *map(chr, range(32, 127))]
    headers = [f"{k}:" for k in range(1, 10)]
    vocabulary = {token: i for i, token in enumerate(["<|pad|>", "<|eos|>", *headers, *characters])}
    pad = "<|pad|>"  # also stands for a character it does not have, which Tokens.text refuses
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=pad))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[1-9]:|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=pad, pad_token=pad, eos_token="<|eos|>")
