"""Packed against separate rows (log-probabilities, gradients, updates); each attention path against a dense mask."""

import doctest
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from apr_train import tree_attention
from apr_train.packing import PackedTrie, pack
from apr_train.tree_attention import PADDING, Part, TreeAttentionError, TreePlan, plan_attention

VOCABULARY = 64
MODELS = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32}),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {}),
}
AREAS = {"flash_calls": 0, "mixed": 2000, "batches": 1 << 60}
"""Largest area of a chain that goes into a padded batch: nothing, some, everything."""


def tiny(name: str, attention: str, **changes: Any) -> PreTrainedModel:
    model_class, config_class, extra = MODELS[name]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        **extra | changes,
    )
    torch.manual_seed(0)
    return model_class._from_config(config, attn_implementation=attention, dtype=torch.float32)


def calls() -> tuple[list[list[int]], list[int]]:
    """Forks nested three deep, a join, two prompts, equal rows, a prefix row, a one-token thread; and the contexts."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(count)]

    root = tokens(20)
    threads = [[1, number, *tokens(length)] for number, length in enumerate((30, 17, 1))]
    inner = root + threads[0] + tokens(6)
    innermost = inner + tokens(8)
    other = tokens(12)
    rows = [
        (root, 8),
        *((root + thread, len(root) + 2) for thread in threads),
        (root + [token for thread in threads for token in thread] + tokens(150), len(root) + sum(map(len, threads))),
        *((inner + tokens(length), len(inner)) for length in (9, 14)),
        *((innermost + tokens(length), len(innermost)) for length in (5, 25)),
        (root + threads[1], len(root) + 2),
        (root[:11], 8),
        (other + tokens(40), len(other)),
        (other + tokens(7), len(other)),
    ]
    return [row for row, _ in rows], [context for _, context in rows]


def weights(rows: list[list[int]], contexts: list[int]) -> list[Tensor]:
    """One random weight per trained token: a log-probability that is off anywhere moves the gradient."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(len(row) - context, generator=generator) for row, context in zip(rows, contexts, strict=True)]


def separate(model: PreTrainedModel, rows: list[list[int]], contexts: list[int]) -> list[Tensor]:
    logps = []
    for row, context in zip(rows, contexts, strict=True):
        ids = torch.tensor([row])
        logits = model(ids[:, :-1], use_cache=False).logits[0, context - 1 :]
        logps.append(logits.log_softmax(-1).gather(1, ids[0, context:, None])[:, 0])
    return logps


def packed(
    model: PreTrainedModel, trie: PackedTrie, contexts: list[int], plan: TreePlan, fused: bool = False
) -> list[Tensor]:
    inputs: dict[str, Any] = {"input_ids": trie.input_ids[None], "position_ids": trie.position_ids[None], "tree": plan}
    if fused:
        inputs |= {"shift_labels": trie.shift_labels[None], "fused_lm_head": True}
        logps = model(**inputs, use_cache=False).log_probs[0]
    else:
        table = model(**inputs, use_cache=False).logits[0].log_softmax(-1)
        logps = table.gather(1, trie.shift_labels.clamp(min=0)[:, None])[:, 0]
    return [logps[index[context - 1 :]] for index, context in zip(trie.where, contexts, strict=True)]


def gradient(model: PreTrainedModel, logps: list[Tensor], weight: list[Tensor]) -> Tensor:
    model.zero_grad()
    torch.cat(logps).dot(torch.cat(weight)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


def largest_gap(ours: list[Tensor], reference: list[Tensor]) -> float:
    return float((torch.cat(ours) - torch.cat(reference)).detach().abs().max())


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("name", ["qwen3", "llama", "qwen2"])
def test_packed_logps_and_gradients_equal_those_of_separate_rows(name: str, area: str) -> None:
    rows, contexts = calls()
    weight, trie = weights(rows, contexts), pack(rows, contexts)
    reference, ours = tiny(name, "sdpa"), tiny(name, "tree")
    expected = separate(reference, rows, contexts)
    actual = packed(ours, trie, contexts, plan_attention(trie, small_area=AREAS[area]))
    assert largest_gap(actual, expected) < 1e-5
    assert relative(gradient(ours, actual, weight), gradient(reference, expected, weight)) < 1e-5


def test_two_optimizer_steps_on_packed_rows_give_the_parameters_of_separate_rows() -> None:
    rows, contexts = calls()
    weight, trie = weights(rows, contexts), pack(rows, contexts)
    plan = plan_attention(trie, small_area=2000)
    models = tiny("qwen3", "sdpa"), tiny("qwen3", "tree")
    start = torch.cat([p.detach().clone().flatten() for p in models[0].parameters()])
    forwards: list[Callable[[], list[Tensor]]] = [
        lambda: separate(models[0], rows, contexts),
        lambda: packed(models[1], trie, contexts, plan),
    ]
    for model, forward in zip(models, forwards, strict=True):
        # eps well above the rounding noise of a gradient of zero, which AdamW would scale up to a full step
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3)
        for _ in range(2):
            gradient(model, forward(), weight)
            optimizer.step()
    ends = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]
    assert relative(ends[1] - start, ends[0] - start) < 1e-5


@pytest.mark.parametrize("broken", ["threads_see_siblings", "thread_forgets_its_prefix", "positions_run_on"])
def test_a_wrong_mask_or_position_is_caught_by_the_gradient(broken: str) -> None:
    rows, contexts = calls()
    weight, trie = weights(rows, contexts), pack(rows, contexts)
    plan = plan_attention(trie, small_area=0)
    whole = ((0, trie.unique_tokens),)
    if broken == "threads_see_siblings":
        plan = replace(plan, parts=(Part(whole, whole, causal=True),))
    elif broken == "thread_forgets_its_prefix":
        last = max(i for i, part in enumerate(plan.parts) if part.merge)
        plan = replace(plan, parts=plan.parts[:last] + plan.parts[last + 1 :])
    else:
        trie = replace(trie, position_ids=torch.arange(trie.unique_tokens))
    reference, ours = tiny("qwen3", "sdpa"), tiny("qwen3", "tree")
    expected = gradient(reference, separate(reference, rows, contexts), weight)
    assert relative(gradient(ours, packed(ours, trie, contexts, plan), weight), expected) > 1e-3


def test_gradient_checkpointing_gives_the_same_gradient() -> None:
    rows, contexts = calls()
    weight, trie = weights(rows, contexts), pack(rows, contexts)
    plan = plan_attention(trie, small_area=2000)
    gradients = []
    for reentrant in (None, True, False):
        model = tiny("qwen3", "tree").train()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        gradients.append(gradient(model, packed(model, trie, contexts, plan), weight))
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_plan_and_labels_reach_the_model_through_the_fused_lm_head_of_trl(name: str) -> None:
    rows, contexts = calls()
    weight, trie = weights(rows, contexts), pack(rows, contexts)
    reference, ours = tiny(name, "sdpa"), tiny(name, "tree")
    add_fused_lm_head(ours)
    actual = packed(ours, trie, contexts, plan_attention(trie), fused=True)
    expected = separate(reference, rows, contexts)
    assert largest_gap(actual, expected) < 1e-5
    assert relative(gradient(ours, actual, weight), gradient(reference, expected, weight)) < 1e-5


# ---- the attention function alone


def ancestors(trie: PackedTrie) -> Tensor:
    """(N, N) bool by brute force: which positions lie on the path of some row up to a position."""
    mask = torch.zeros(trie.unique_tokens, trie.unique_tokens, dtype=torch.bool)
    for index in trie.where:
        for depth, position in enumerate(index.tolist()):
            mask[position, index[: depth + 1]] = True
    return mask


def random_rows(seed: int) -> list[list[int]]:
    """A random forest of rows: each new row leaves an earlier one at a random depth."""
    rng = random.Random(seed)
    rows = [[rng.randrange(9) for _ in range(rng.randint(2, 40))]]
    for _ in range(rng.randint(0, 12)):
        stem = rng.choice(rows)
        rows.append(stem[: rng.randint(0, len(stem))] + [rng.randrange(9) for _ in range(rng.choice((2, 5, 60)))])
    return rows


def attend(plan: TreePlan | None, mask: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Output (1, N, H, D) and gradients of q, k, v (1, heads, N, D), by the plan or by a dense mask in float64."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    if plan is None:
        repeat = q.shape[1] // k.shape[1]
        keys, values = (x.double().repeat_interleave(repeat, 1) for x in (k, v))
        scores = q.double() @ keys.transpose(2, 3) * 0.3
        assert mask is not None
        out = (scores.masked_fill(~mask, -math.inf).softmax(-1) @ values).transpose(1, 2)
    else:
        out, _ = tree_attention.tree_attention(torch.nn.Module(), q, k, v, None, scaling=0.3, tree=plan)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), cotangent)


def heads(tokens: int, query_heads: int, key_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(1, tokens, count, 16, generator=generator).mul(2).to(dtype).transpose(1, 2)
        for count in (query_heads, key_heads, key_heads)
    ]


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from(sorted(AREAS)), st.sampled_from([(4, 4), (4, 2), (3, 1)]))
def test_each_attention_path_equals_a_dense_mask(seed: int, area: str, shape: tuple[int, int]) -> None:
    trie = pack(random_rows(seed))
    qkv = heads(trie.unique_tokens, *shape)
    expected = attend(None, ancestors(trie), *qkv)
    actual = attend(plan_attention(trie, small_area=AREAS[area]), None, *qkv)
    for ours, reference in zip(actual, expected, strict=True):
        assert (ours - reference).norm() <= 1e-5 * reference.norm() + 1e-6


@pytest.mark.parametrize("area", AREAS)
def test_bfloat16_differs_from_a_dense_mask_by_its_rounding_only(area: str) -> None:
    rows, _ = calls()
    trie = pack(rows)
    qkv = heads(trie.unique_tokens, 4, 2, torch.bfloat16)
    expected = attend(None, ancestors(trie), *qkv)
    actual = attend(plan_attention(trie, small_area=AREAS[area]), None, *qkv)
    assert all(relative(a.double(), b.double()) < 0.01 for a, b in zip(actual, expected, strict=True))


def test_autocast_runs_the_model_in_bfloat16() -> None:
    rows, contexts = calls()
    trie = pack(rows, contexts)
    model = tiny("qwen3", "tree")
    expected = torch.cat(packed(model, trie, contexts, plan_attention(trie)))
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.cat(packed(model, trie, contexts, plan_attention(trie)))
    assert 1e-5 < relative(actual, expected) < 0.01


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from(sorted(AREAS)))
def test_the_parts_cover_each_ancestor_once_and_bound_the_padding(seed: int, area: str) -> None:
    trie = pack(random_rows(seed))
    seen = torch.zeros(trie.unique_tokens, trie.unique_tokens, dtype=torch.long)
    for part in plan_attention(trie, small_area=AREAS[area]).parts:
        if isinstance(part.query, Tensor):
            assert isinstance(part.key, Tensor)
            assert part.bias_B1QK is not None
            assert part.real_BQ is not None
            visible = (part.bias_B1QK[:, 0] == 0) & part.real_BQ[:, :, None]
            b, i, j = visible.nonzero(as_tuple=True)
            seen.index_put_((part.query[b, i], part.key[b, j]), torch.tensor(1), accumulate=True)
            area_of_chains = part.real_BQ.sum(1) * visible[torch.arange(len(visible)), part.real_BQ.sum(1) - 1].sum(1)
            assert visible.numel() <= PADDING * area_of_chains.sum()
        else:
            ((start, end),) = part.query
            for low, high in part.key:
                seen[start:end, low:high] += torch.ones(end - start, high - low, dtype=torch.long).tril(
                    0 if part.causal else trie.unique_tokens
                )
    assert torch.equal(seen, ancestors(trie).long())


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_the_block_mask_for_cuda_says_the_same_as_the_parts(seed: int) -> None:
    trie = pack(random_rows(seed))
    q, k, v = heads(trie.unique_tokens, 4, 2)
    mask = tree_attention._block_mask(trie.segments, trie.unique_tokens, torch.device("cpu"))
    with torch.no_grad():
        out = flex_attention(q, k, v, block_mask=mask, scale=0.3, enable_gqa=True)
    assert isinstance(out, Tensor)
    torch.testing.assert_close(out.transpose(1, 2), attend(plan_attention(trie), None, q, k, v)[0])


# ---- memory


class Largest(TorchDispatchMode):
    """Records the most elements that any tensor made inside has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


def test_no_tensor_grows_with_the_square_of_the_tokens() -> None:
    rng = random.Random(0)
    root = [rng.randrange(VOCABULARY) for _ in range(1500)]
    rows = [root + [i] + [rng.randrange(VOCABULARY) for _ in range(120)] for i in range(20)]
    trie = pack(rows)
    squared = trie.unique_tokens**2
    model = tiny("qwen3", "tree")
    inputs = {"input_ids": trie.input_ids[None], "position_ids": trie.position_ids[None], "use_cache": False}
    with Largest() as ours:
        model(**inputs, tree=plan_attention(trie)).logits.sum().backward()
    with Largest() as dense, torch.no_grad():
        model(**inputs)
    assert ours.elements < squared / 20
    assert dense.elements >= squared


# ---- without a plan, and what is refused


@pytest.mark.parametrize("case", ["plain", "padded", "restarting_positions"])
def test_without_a_plan_it_is_exactly_sdpa(case: str) -> None:
    ids = torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Tensor] = {"input_ids": ids}
    if case == "padded":
        inputs["attention_mask"] = torch.ones_like(ids).index_fill(1, torch.tensor([0, 1]), 0)
    if case == "restarting_positions":
        inputs["position_ids"] = torch.tensor([[*range(5), *range(7)]]).expand(3, -1)
    with torch.no_grad():
        assert torch.equal(tiny("qwen3", "tree")(**inputs).logits, tiny("qwen3", "sdpa")(**inputs).logits)


def test_generation_with_a_cache_is_that_of_sdpa() -> None:
    ids = torch.randint(VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    texts = [tiny("qwen3", attention).generate(ids, **options) for attention in ("tree", "sdpa")]
    assert torch.equal(*texts)


@pytest.mark.parametrize(
    ("name", "changes", "inputs", "message"),
    [
        ("qwen3", {"attention_dropout": 0.1}, {}, "attention dropout"),
        ("mistral", {"sliding_window": 4}, {}, "sliding window"),
        ("qwen3", {}, {"attention_mask": torch.tensor([[0, 1, 1, 1]])}, "a mask besides its plan"),
        ("qwen3", {}, {"input_ids": torch.tensor([[1, 2, 3]]), "position_ids": None}, "got 1 of 3 with 3 keys"),
        ("qwen3", {}, {"input_ids": torch.ones(2, 4).long(), "position_ids": None}, "got 2 of 4"),
    ],
)
def test_what_a_plan_cannot_serve_is_refused(
    name: str, changes: dict[str, Any], inputs: dict[str, Any], message: str
) -> None:
    trie = pack([[1, 2, 3, 4], [1, 2, 5]])
    model = tiny(name, "tree", **changes).train()
    call: dict[str, Any] = {"input_ids": trie.input_ids[None], "position_ids": trie.position_ids[None]} | inputs
    with pytest.raises(TreeAttentionError, match=message):
        model(**call, tree=plan_attention(trie), use_cache=False)


@pytest.mark.parametrize(
    ("kwarg", "value", "message"),
    [
        ("s_aux", 1.0, "sinks"),
        ("softcap", 30.0, "soft cap"),
        ("position_bias", 1.0, "bias"),
        ("is_causal", False, "not"),
    ],
)
def test_scores_other_than_plain_are_refused(kwarg: str, value: float, message: str) -> None:
    trie, kwargs = pack([[1, 2, 3]]), {kwarg: value}
    with pytest.raises(TreeAttentionError, match=message):
        tree_attention.tree_attention(torch.nn.Module(), *heads(2, 4, 2), None, tree=plan_attention(trie), **kwargs)


def test_the_worked_examples_of_the_documentation_hold() -> None:
    assert doctest.testmod(tree_attention).failed == 0
