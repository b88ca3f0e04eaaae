"""Tags become true tokens with sensible rows, text never does, and bad model folders fail before any work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from apr_train.config import ModelConfig
from apr_train.model import ModelError, character_tokenizer, load_model, load_tokenizer, prepare_model_folder
from apr_train.weight_sync import full_weights, save_model, saved_weights
from rollout.dialects import dialect_class, make_dialect
from rollout.engines import thread_vectors
from rollout.tokens import TagError, Tokens

TAGS = dialect_class("threadweaver").tags()


def base_model(folder: Path, tied: bool) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A folder of a model that does not know the tags; its input and output tables."""
    torch.manual_seed(3)
    tokenizer = character_tokenizer()
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 16,
    }
    config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=tied, max_position_embeddings=64, **sizes)
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_tag_starts_as_the_mean_of_its_own_characters(tmp_path: Path, tied: bool) -> None:
    path, inputs, outputs = base_model(tmp_path / "base", tied)
    config = ModelConfig(path=str(path), max_context=64)
    prepare_model_folder(config, TAGS, tmp_path / "start", seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    tokens = Tokens(AutoTokenizer.from_pretrained(tmp_path / "start"))
    spelled = list(tokens.text("<Thread>"))
    assert len(spelled) == 8
    for table, before in ((model.get_input_embeddings(), inputs), (model.get_output_embeddings(), outputs)):
        assert torch.allclose(table.weight[tokens.tag("<Thread>")], before[spelled].mean(0))
        assert torch.equal(table.weight[: len(before)], before)  # nothing else moved


def test_a_warm_folder_is_left_as_it_is(tmp_path: Path) -> None:
    base_model(tmp_path / "base", tied=True)
    prepare_model_folder(ModelConfig(path=str(tmp_path / "base"), max_context=64), TAGS, tmp_path / "one", seed=0)
    prepare_model_folder(ModelConfig(path=str(tmp_path / "one"), max_context=64), TAGS, tmp_path / "two", seed=1)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_folder_made_again_never_shows_half_a_file_and_keeps_no_weights_of_another(tmp_path: Path) -> None:
    config = ModelConfig(hidden_size=32, layers=1, intermediate_size=8)
    prepare_model_folder(config, TAGS, tmp_path / "start", seed=0)
    with (tmp_path / "start" / "model.safetensors").open("rb") as held:  # as a server that loads it holds it
        whole = held.read()
        (tmp_path / "start" / "model-00001-of-00002.safetensors").write_bytes(whole)
        prepare_model_folder(config, TAGS, tmp_path / "start", seed=1)
        held.seek(0)
        assert held.read() == whole
    assert (tmp_path / "start" / "model.safetensors").read_bytes() != whole
    assert [file.name for file in (tmp_path / "start").glob("*.safetensors")] == ["model.safetensors"]
    assert [each.name for each in tmp_path.iterdir()] == ["start"]


def test_a_tag_that_is_not_one_token_is_refused() -> None:
    with pytest.raises(TagError, match="not one"):
        make_dialect("threadweaver", Tokens(character_tokenizer()))


def test_text_that_spells_a_tag_or_the_eos_stays_text(tmp_path: Path) -> None:
    prepare_model_folder(ModelConfig(hidden_size=32, layers=1, intermediate_size=8), TAGS, tmp_path, seed=0)
    tokens = Tokens(AutoTokenizer.from_pretrained(tmp_path))  # also after the round trip through the folder
    for text in (*TAGS, "<|eos|>", "<|pad|>"):
        ids = tokens.text(text)
        assert len(ids) == len(text) and tokens.decode(ids) == text


def test_a_chat_template_surrounds_the_problem_and_only_its_own_marks_are_special() -> None:
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m.content }}\n{% endfor %}"
    tokens = Tokens(tokenizer)
    mark = tokens.tag("<|user|>")
    ids = tokens.prompt("1<|user|>2")
    assert ids[0] == mark and ids.count(mark) == 1 and tokens.decode(ids) == "<|user|>1<|user|>2\n"


def test_a_context_longer_than_the_model_is_refused(tmp_path: Path) -> None:
    path, _, _ = base_model(tmp_path, tied=True)
    with pytest.raises(ModelError, match="max_context"):
        load_model(ModelConfig(path=str(path), max_context=65), character_tokenizer())


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("model.safetensors", "garbage", "model (SafetensorError: "),
        ("config.json", "[]", "(TypeError: "),
        ("config.json", "{}", "(ValueError: "),
        ("config.json", '{"model_type": "qwen3", "hidden_size": "x"}', "'hidden_size'"),
        ("tokenizer.json", "garbage", "tokenizer (JSONDecodeError: "),
        ("tokenizer.json", "{}", "tokenizer (KeyError: 'added_tokens')"),
    ],
)
def test_a_broken_model_folder_is_one_line_that_names_it(tmp_path: Path, file: str, text: str, reason: str) -> None:
    path, _, _ = base_model(tmp_path, tied=True)
    (path / file).write_text(text)
    with pytest.raises(ModelError) as error:
        prepare_model_folder(ModelConfig(path=str(path), max_context=64), TAGS, tmp_path / "start", seed=0)
    assert str(error.value).startswith(f"model.path={path}: cannot load its ")
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_a_hub_name_that_cannot_be_had_is_one_line() -> None:
    for load in (load_tokenizer, lambda config: load_model(config, character_tokenizer())):
        with pytest.raises(ModelError, match=r"^model\.path=nobody/nothing: cannot load its .*OSError: [^\n]*$"):
            load(ModelConfig(path="nobody/nothing"))


@pytest.mark.parametrize("tied", [True, False])
def test_saved_weights_are_the_weights_in_training(tmp_path: Path, tied: bool) -> None:
    path, _, _ = base_model(tmp_path / "base", tied)
    model = AutoModelForCausalLM.from_pretrained(path)
    for parameter in model.parameters():
        parameter.data.add_(1.0)
    save_model(model, AutoTokenizer.from_pretrained(path), tmp_path / "out", is_main=True)
    saved, live = dict(saved_weights(tmp_path / "out")), dict(full_weights(model))
    assert saved.keys() == live.keys() and all(torch.equal(saved[name], live[name]) for name in live)


def test_a_checkpoint_without_some_weights_is_refused_and_never_filled_up(tmp_path: Path) -> None:
    path, _, _ = base_model(tmp_path, tied=True)
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"hold no model.layers.0.mlp.up_proj.weight"):
        load_model(ModelConfig(path=str(path), max_context=64), character_tokenizer())


def test_a_character_without_a_token_is_refused_and_never_padding() -> None:
    with pytest.raises(TagError, match="cannot spell"):
        Tokens(character_tokenizer()).text("café × 2")


@pytest.mark.parametrize("load", ["load_tokenizer", "load_model", "thread_vectors"])
def test_python_in_a_model_folder_is_never_run_not_even_when_somebody_says_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str
) -> None:
    ran = tmp_path / "ran"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    for file in ("config.json", "tokenizer_config.json"):
        (folder / file).write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    monkeypatch.setattr("builtins.input", lambda _: "y")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    config = ModelConfig(path=str(folder))
    loads: dict[str, Callable[[], Any]] = {
        "load_tokenizer": lambda: load_tokenizer(config),
        "load_model": lambda: load_model(config, character_tokenizer()),
        "thread_vectors": lambda: thread_vectors.load(folder),
    }
    with pytest.raises((ModelError, ValueError)):
        loads[load]()
    assert not ran.exists()
