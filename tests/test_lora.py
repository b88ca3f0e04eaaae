"""What is sampled and saved is what is trained, with LoRA too: a sum with frozen weights, which stay what they were."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from test_saving import curve, trainer_of
from torch import Tensor
from trainers import TAGS, TOKENS, adapted, make_trainer, step_gradient, tiny_model
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from apr_train import lora
from apr_train.checkpoint import CheckpointError
from apr_train.config import LoraConfig
from apr_train.lifecycle import Stopped
from apr_train.lora import LoraError, adapt
from apr_train.weight_sync import fingerprint, full_weights, save_model, saved_weights
from rollout.engines import thread_vectors

IDS = torch.arange(30)[None] % len(TOKENS.tokenizer)


def untied(attention: str = "sdpa") -> Qwen3ForCausalLM:
    config = tiny_model(attention).config
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def snapshot(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_a_plain_model_with_the_synced_weights_is_the_trained_one() -> None:
    model = adapted(tiny_model("sdpa"))
    fresh = tiny_model("sdpa", seed=3)
    names = set(dict(fresh.named_parameters()))
    found = dict(full_weights(model))
    assert found.keys() == names
    fresh.load_state_dict(found, strict=False)
    assert (logits(fresh) - logits(tiny_model("sdpa"))).abs().max() > 1e-2
    assert (logits(fresh) - logits(model)).abs().max() < 1e-5


def test_syncing_moves_no_weight_however_often() -> None:
    model = adapted(tiny_model("sdpa"))
    before, first = snapshot(model), {name: tensor.clone() for name, tensor in full_weights(model)}
    for _ in range(20):
        last = {name: tensor.clone() for name, tensor in full_weights(model)}
    assert all(torch.equal(last[name], first[name]) for name in first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_a_sum_in_bfloat16_is_rounded_once() -> None:
    torch.manual_seed(0)
    weight, a, b = (torch.randn(shape).bfloat16() for shape in ((64, 64), (4, 64), (64, 4)))
    with torch.no_grad():
        found = lora.Added(torch.nn.Parameter(a), torch.nn.Parameter(b), 0.25).to(weight)
    exact = weight.double() + 0.25 * b.double() @ a.double()
    assert found.dtype == torch.bfloat16
    assert float((found.double() - exact).abs().div(exact.abs()).max()) <= 2**-8


def test_gradients_are_those_of_the_sum(tmp_path: Path) -> None:
    """dL/dA = s B^T dL/dW and dL/dB = s dL/dW A^T, with dL/dW from a plain model that is trained whole."""
    model = adapted(tiny_model("tree"))
    plain = tiny_model("tree")
    plain.load_state_dict(dict(full_weights(model)), strict=False)
    step_gradient(make_trainer(tmp_path, packed=True, model=plain))
    trainer = make_trainer(tmp_path, packed=True, model=model)
    step_gradient(trainer)
    whole = {name: parameter.grad for name, parameter in plain.named_parameters()}
    seen = 0
    for name, parameter, added in lora.plain_parameters(model):
        if added is None:
            continue
        a, b, scale, grad = added.a, added.b, added.scale, whole[name]
        for ours, theirs in ((a.grad, scale * b.T @ grad), (b.grad, scale * grad @ a.T)):
            assert float((ours - theirs).norm() / theirs.norm()) < 1e-4, name
        assert parameter.grad is None
        seen += 1
    assert seen == 14
    table = model.get_input_embeddings().weight.grad
    theirs = whole["model.embed_tokens.weight"]
    assert float((table[TAGS] - theirs[TAGS]).norm() / theirs[TAGS].norm()) < 1e-4
    others = sorted(set(range(len(table))) - set(TAGS))
    assert not table[others].any() and theirs[others].any()


@pytest.mark.parametrize("tied", [True, False])
def test_training_moves_adapters_and_rows_of_tags_and_nothing_else(tmp_path: Path, tied: bool) -> None:
    """With weight decay, which needs no gradient to move a row."""
    model = adapted(tiny_model("tree") if tied else untied("tree"))
    before = snapshot(model)
    trainer = make_trainer(tmp_path, packed=True, model=model, weight_decay=0.1)
    trainer.train()
    others = sorted(set(range(len(TOKENS.tokenizer))) - set(TAGS))
    moved: set[str] = set()
    for name, now in snapshot(model).items():
        kind = name.split(".")[-3] if ".lora_" in name else name.split(".")[-2]
        if kind in ("embed_tokens", "lm_head"):
            assert torch.equal(now[others], before[name][others]), name
        if not torch.equal(now, before[name]):
            moved.add(kind)
    assert moved == {"lora_A", "lora_B", "embed_tokens", *([] if tied else ["lm_head"])}


def test_a_sampler_of_the_sum_and_the_trainer_agree_at_every_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, packed=True, noise=0.0, model=adapted(tiny_model("tree")))
    sampler: Any = trainer.rollouts.sampler

    def policy() -> Qwen3ForCausalLM:
        model = tiny_model("sdpa", seed=3)
        model.load_state_dict(sampler.loaded[-1], strict=False)
        return model

    sampler.policy = policy
    trainer.train()
    gaps = [row["gap/logprob_mean_abs"] for row in trainer.state.log_history if "gap/logprob_mean_abs" in row]
    assert len(gaps) == 2 and max(gaps) < 1e-6


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_plain_and_its_adapter_is_one_that_peft_reads(tmp_path: Path, tied: bool) -> None:
    make = tiny_model if tied else untied
    start = make("sdpa")
    start.save_pretrained(tmp_path / "start")
    model = adapted(make("sdpa"))
    with torch.no_grad():
        for _, parameter, rows in lora.trained(model):
            if rows is not None:
                parameter[rows] += 0.1
    save_model(model, TOKENS.tokenizer, tmp_path / "saved", is_main=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="sdpa")
    assert type(merged) is Qwen3ForCausalLM
    assert (logits(merged) - logits(model)).abs().max() < 1e-5
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "start", attn_implementation="sdpa")
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "saved" / lora.ADAPTER))
    assert (logits(theirs) - logits(model)).abs().max() < 1e-5


def test_a_stopped_run_goes_on_from_its_adapter_and_not_from_the_sum(tmp_path: Path) -> None:
    def make(folder: Path, **options: Any) -> Any:
        return trainer_of(folder, model=adapted(tiny_model("tree")), **options)

    alone, first = make(tmp_path / "alone"), make(tmp_path / "broken", stop=lambda step: step == 3)
    alone.resume_training()
    with pytest.raises(Stopped):
        first.resume_training()
    second = make(tmp_path / "broken")
    second.resume_training()
    assert second.sampled == [-3, 4, 5]
    assert curve(second) == curve(alone)
    ours, theirs = snapshot(second.model), snapshot(alone.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def start_folder(folder: Path, seed: int = 0) -> Path:
    tiny_model("sdpa", seed).save_pretrained(folder)
    return folder


def test_a_fingerprint_is_of_the_weights_alone(tmp_path: Path) -> None:
    one, same, other = (start_folder(tmp_path / str(number), seed) for number, seed in enumerate((0, 0, 1)))
    (same / "config.json").write_text("{}")
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert len(dict(saved_weights(one))) == len(dict(tiny_model("sdpa").named_parameters()))


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({}, {"base": "another"}, "other frozen weights.*bring back what model.path held"),
        ({}, {"rank": 2}, "an adapter of another shape"),
        ({}, {"targets": ["q_proj"]}, "an adapter of another shape"),
        ({}, {"alpha": 7.0}, r"lora_alpha is 32\S* and not 7"),
        ({}, None, "trained an adapter, not all weights"),
        (None, {}, "trained all weights, not an adapter"),
    ],
)
def test_what_a_checkpoint_was_not_trained_beside_is_refused(
    tmp_path: Path, before: dict[str, Any] | None, now: dict[str, Any] | None, words: str
) -> None:
    def make(settings: dict[str, Any] | None) -> Any:
        if settings is None:
            return tiny_model("tree")
        given = {"base": "start"} | settings
        return adapt(tiny_model("tree"), LoraConfig(**{"rank": 4} | settings_of(given)), TAGS, base=given["base"])

    def settings_of(given: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name != "base"}

    first = trainer_of(tmp_path, model=make(before), stop=lambda step: step == 1)
    with pytest.raises(Stopped):
        first.resume_training()
    with pytest.raises(CheckpointError, match=words):
        trainer_of(tmp_path, model=make(now)).resume_training()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"targets": ["q_prj"]}, "q_prj"),
        ({"targets": []}, "targets"),
        ({"targets": ["embed_tokens"]}, "cannot adapt model.embed_tokens"),
        ({"targets": ["lm_head"]}, "the output embeddings"),
        ({"whole": ["nrm"]}, "the model has no nrm"),
        ({"whole": ["mlp"]}, "has layers that model.lora.targets adapts"),
    ],
)
def test_what_cannot_be_adapted_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(LoraError, match=words):
        adapt(untied(), LoraConfig(**{"rank": 4} | settings), TAGS)


def test_what_is_to_be_trained_whole_is(tmp_path: Path) -> None:
    model = adapted(tiny_model("tree"), whole=["norm", "embed_tokens"], targets=["q_proj"])
    names = {name for name, _, _ in lora.trained(model)}
    prefix = "base_model.model.model"
    assert {f"{prefix}.norm.weight", f"{prefix}.embed_tokens.weight"} < names
    before = snapshot(model)
    make_trainer(tmp_path, packed=True, model=model).train()
    table = model.get_input_embeddings().weight
    others = sorted(set(range(len(table))) - set(TAGS))
    assert not torch.equal(table[others], before[f"{prefix}.embed_tokens.weight"][others])
    model.set_attn_implementation("sdpa")
    save_model(model, TOKENS.tokenizer, tmp_path / "saved", is_main=True)
    lora.check_adapter(model, tmp_path / "saved")
    theirs = PeftModel.from_pretrained(tiny_model("sdpa"), str(tmp_path / "saved" / lora.ADAPTER))
    assert (logits(theirs) - logits(model)).abs().max() < 1e-5


def test_vectors_of_threads_are_trained_whole_beside_adapters() -> None:
    plain = tiny_model("sdpa")
    thread_vectors.install(plain, 3)
    threads = (torch.arange(IDS.shape[1])[None] // 8).clamp_max(3)
    model = adapted(plain)
    vectors = [name for name, _, _ in lora.trained(model) if "thread_vectors" in name]
    assert len(vectors) == 2
    fresh = tiny_model("sdpa", seed=3)
    thread_vectors.install(fresh, 3)
    fresh.load_state_dict(dict(full_weights(model)), strict=False)
    with torch.no_grad():
        ours = model(input_ids=IDS, threads=threads).logits
        theirs = fresh(input_ids=IDS, threads=threads).logits
        none = fresh(input_ids=IDS, threads=torch.zeros_like(threads)).logits
    assert (ours - theirs).abs().max() < 1e-5 < (none - theirs).abs().max()


def test_adapters_are_the_same_on_every_start_and_draw_nothing_else() -> None:
    found = []
    for noise in (0, 7):
        torch.manual_seed(noise)
        plain = tiny_model("sdpa")
        torch.manual_seed(noise)
        found.append(snapshot(adapt(plain, LoraConfig(rank=4), TAGS, seed=5)))
        after = torch.rand(1)
        torch.manual_seed(noise)
        assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
