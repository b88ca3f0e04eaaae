"""Wrong model folders; what comes with them as code must not run."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs import Case, write

MODEL = "Model folders (model.path)"
RAN = "ran.txt"
"""What a hostile folder writes when it is run."""


def model(name: str, did: str, change: Callable[[], object], line: str) -> Case:
    """A sound folder `model` that was changed, checked, prepared and asked for a prompt as a start does."""

    def act() -> None:
        from test_model import TAGS, base_model
        from transformers import AutoTokenizer

        from apr_train.config import ModelConfig
        from apr_train.model import prepare_model_folder
        from apr_train.validate import check_model_folder
        from rollout.tokens import Tokens

        base_model(Path("model"), tied=True)
        change()
        config = ModelConfig(path="model", max_context=64)
        check_model_folder(config)
        prepare_model_folder(config, TAGS, Path("start"), seed=0)
        Tokens(AutoTokenizer.from_pretrained("start", trust_remote_code=False)).prompt("1+1?")

    return Case(name, MODEL, did, line, act)


def setting(**values: Any) -> Callable[[], object]:
    """Changes config.json."""

    def change() -> None:
        config = json.loads(Path("model/config.json").read_text())
        write("model/config.json", json.dumps(config | values))

    return change


def file(name: str, content: str | bytes) -> Callable[[], object]:
    return lambda: write(f"model/{name}", content)


def without(*names: str) -> Callable[[], object]:
    return lambda: [Path(f"model/{name}").unlink() for name in names]


def cut() -> None:
    weights = Path("model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])


def with_nan() -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file("model/model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, "model/model.safetensors", metadata={"format": "pt"})


def with_code() -> None:
    setting(model_type="mine", auto_map={"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"})()
    write("model/mine.py", f"open({RAN!r}, 'w').close()\nclass Mine: pass\n")


def with_pickle() -> None:
    """Weights as a pickle that would call a function."""
    import torch

    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (RAN,)

    without("model.safetensors")()
    torch.save({"model.norm.weight": Call()}, "model/pytorch_model.bin")


def tag_of_many_tokens() -> None:
    from apr_train.model import character_tokenizer
    from rollout.dialects import make_dialect
    from rollout.tokens import Tokens

    make_dialect("threadweaver", Tokens(character_tokenizer()))


def unspelt() -> None:
    from apr_train.model import character_tokenizer
    from rollout.tokens import Tokens

    Tokens(character_tokenizer()).text("2 × 3")


def vectors_in_vllm() -> None:
    from rollout.engines.calls import check_stock

    write("model/config.json", json.dumps({"apr_thread_vectors": 8}))
    check_stock("model", "vLLM")


def small_vocabulary() -> None:
    from apr_train.config import ModelConfig
    from apr_train.model import load_model, load_tokenizer

    config = ModelConfig(vocabulary=64)
    load_model(config, load_tokenizer(config))


def torch_engine() -> None:
    from test_model import base_model

    from rollout.engines.torch_engine import TorchEngine

    base_model(Path("model"), tied=True)
    cut()
    TorchEngine(Path("model"), dtype="float32", max_context=64)


CASES = [
    model(
        "no config",
        "no config.json",
        without("config.json"),
        "model.path=model is not a model folder: it has no config.json",
    ),
    model(
        "config no JSON",
        "a config.json that is no JSON",
        file("config.json", "{"),
        (
            "model.path=model: config.json is not JSON (Expecting property name enclosed in double "
            "quotes: line 1 column 2 (char 1))"
        ),
    ),
    model(
        "config list",
        "a config.json that is no object",
        file("config.json", "[]"),
        "model.path=model: config.json must hold an object, not a list",
    ),
    model(
        "no tokenizer",
        "no tokenizer",
        without("tokenizer.json", "tokenizer_config.json"),
        "model.path=model is not a model folder: it has no tokenizer files",
    ),
    model(
        "tokenizer no JSON",
        "a tokenizer.json that is no JSON",
        file("tokenizer.json", "{"),
        (
            "model.path=model: cannot load its tokenizer (JSONDecodeError: Expecting property name "
            "enclosed in double quotes: line 1 column 2 (char 1))"
        ),
    ),
    model(
        "no weights",
        "no weights",
        without("model.safetensors"),
        "model.path=model is not a model folder: it has no weights (*.safetensors or *.bin)",
    ),
    model(
        "cut weights",
        "truncated weights",
        cut,
        (
            "model.path=model: cannot load its model (SafetensorError: Error while deserializing "
            "header: invalid header length)"
        ),
    ),
    model(
        "other shapes",
        "weights of another size than config.json says",
        setting(intermediate_size=32),
        ("model.path=model: cannot load its model (its weights have other shapes than its config.json says)"),
    ),
    model(
        "NaN",
        "weights with a NaN",
        with_nan,
        "model.path=model: model.norm.weight holds NaN or infinity; download or export it again",
    ),
    model(
        "quantised",
        "a quantised model",
        setting(quantization_config={"quant_method": "gptq", "bits": 4}),
        "model.path=model is quantised, which cannot be trained: take the full weights",
    ),
    model(
        "unknown type",
        "a model_type that nobody knows",
        setting(model_type="qwen9"),
        ("model.path=model: cannot load its config.json (transformers does not know its model_type)"),
    ),
    model(
        "no language model",
        "a model that does not write text on",
        setting(model_type="vit"),
        "model.path=model: cannot load its model (it is no model that writes text on)",
    ),
    model(
        "short model",
        "a model shorter than model.max_context",
        setting(max_position_embeddings=32),
        "model.max_context=64 is longer than the model's own 32 positions; lower it",
    ),
    model(
        "code",
        "a folder with Python of its own; it is not run",
        with_code,
        (
            "model.path=model: cannot load its config.json (it comes with Python of its own, which "
            "is never run: use a model that transformers knows)"
        ),
    ),
    model(
        "pickle",
        "a pickle instead of weights; it is not run",
        with_pickle,
        (
            "model.path=model: cannot load its model (its *.bin is no plain weights file and is not "
            "run: use *.safetensors)"
        ),
    ),
    model(
        "template",
        "a chat template that cannot be rendered",
        file("chat_template.jinja", "{% for"),
        "the chat template cannot be rendered (unexpected 'end of template'): correct it",
    ),
    model(
        "template without",
        "a chat template without the message",
        file("chat_template.jinja", "Hello."),
        "the chat template does not show the user's message exactly once: use a plain template",
    ),
    model(
        "generation",
        "settings that contradict each other",
        file("generation_config.json", '{"top_p": 0.5}'),
        (
            "model.path=model: generation_config.json (GenerationConfig is invalid: - `top_p`: "
            "`do_sample` is not set to `True`. However, `top_p` is set to `0.5` ..)"
        ),
    ),
    Case(
        "tag of many tokens",
        MODEL,
        "tags that the tokenizer does not know",
        "tag '<think>' is 7 tokens of this tokenizer, not one: run SFT first, or register_tags()",
        tag_of_many_tokens,
    ),
    Case(
        "unspelt",
        MODEL,
        "a problem that the tokenizer cannot spell",
        "this tokenizer cannot spell all of '2 × 3': clean the text, or use a model that can",
        unspelt,
    ),
    Case(
        "vectors in vLLM",
        MODEL,
        "a model with thread vectors, sampled by vLLM",
        "model has a learned vector per thread, which vLLM cannot add: use rollout=torch",
        vectors_in_vllm,
    ),
    Case(
        "vocabulary",
        MODEL,
        "a fresh model with too few tokens",
        "model.vocabulary=64 is less than the 107 tokens of the tokenizer and its tags",
        small_vocabulary,
    ),
    Case(
        "torch engine",
        MODEL,
        "truncated weights in the sampler (rollout=torch)",
        "transformers cannot load model: Error while deserializing header: invalid header length",
        torch_engine,
    ),
]
