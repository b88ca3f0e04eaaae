"""A learned vector per thread is where it belongs, and trained like any other weight, by a decoder by hand."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stitched_trees import calls_of, error, group, random_trajectory
from trainers import TOKENS, PreparedSampler, handed_out, make_trainer, solved, step_gradient, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head
from vectors import COUNT, by_hand, call_logps, numbered, path, tables, with_vectors

from apr_train.dag_packing import pack_calls, pack_views
from apr_train.fidelity import packed_logps
from apr_train.revival import Revival
from apr_train.sft import collate_tries, trajectory_rows
from rollout.engine import EngineError
from rollout.engines import thread_vectors
from rollout.strategies.base import Solved
from rollout.trajectory import Segment


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


@pytest.mark.parametrize("make", [lambda: tiny_model("sdpa"), llama], ids=["qwen3", "llama"])
def test_the_vector_is_added_before_the_turn_to_every_head_of_keys_and_values_and_to_no_query(make: Any) -> None:
    model, draw = with_vectors(make()), random.Random(0)
    ids, threads = [draw.choices(range(5, 40), k=12) for _ in range(2)], draw.choices(range(COUNT + 1), k=12)
    positions = [0, 1, 2, 3, 2, 3, 4, 7, 8, 9, 10, 5]
    sees = [{j for j in range(i + 1) if draw.random() < 0.7} | {i} for i in range(12)]
    mask = torch.tensor([[j in seen for j in range(12)] for seen in sees])[None, None].expand(2, 1, 12, 12)
    spread = torch.tensor([threads, threads[::-1]])
    at = torch.tensor([positions, positions])
    ours = model(input_ids=torch.tensor(ids), position_ids=at, attention_mask=mask, threads=spread).logits
    for row in range(2):
        expected = by_hand(model, ids[row], positions, sees, spread[row].tolist())
        torch.testing.assert_close(ours[row], expected, atol=1e-5, rtol=1e-5)


def test_the_root_is_what_it_was_without_vectors() -> None:
    plain, ids = tiny_model("sdpa"), torch.tensor([[5, 6, 7, 8]])
    ours = with_vectors(tiny_model("sdpa"))(ids, threads=torch.zeros_like(ids)).logits
    assert torch.equal(ours, plain(ids).logits)
    later = with_vectors(tiny_model("sdpa"))(ids, threads=torch.tensor([[0, 0, 1, 0]])).logits
    assert torch.equal(later[:, :2], ours[:, :2])
    assert (later[:, 3] - ours[:, 3]).abs().max() > 1e-3  # once it has read a thread


def test_fresh_vectors_are_small_and_none_is_the_roots() -> None:
    model = tiny_model("sdpa")
    thread_vectors.install(model, 400)
    assert [table.shape for table in tables(model)] == [(400, 16)] * 2
    assert torch.cat(tables(model)).std().item() == pytest.approx(0.02, rel=0.05)


def test_packed_log_probs_and_gradients_equal_the_decoder_by_hand() -> None:
    for seed in range(4):
        trajectories = numbered(group(seed, *["stitched"] * 3, forks=0.9))
        ours, reference = with_vectors(tiny_model("tree")), with_vectors(tiny_model("tree"))
        packed = pack_views(calls_of(trajectories))
        logps = packed_logps(ours, packed)
        found = [logps[at] for at in packed.where]
        expected = [call_logps(reference, t, call) for t in trajectories for call in t.calls]
        weights = torch.randn(len(found), generator=torch.Generator().manual_seed(0)).tolist()
        for each in (found, expected):
            torch.stack([weight * own.sum() for weight, own in zip(weights, each, strict=True)]).sum().backward()
        assert (torch.cat(found) - torch.cat(expected)).abs().max() < 1e-5
        assert error(*(torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (ours, reference))) < 1e-5
        assert error(*(torch.cat([p.grad.flatten() for p in tables(m)]) for m in (ours, reference))) < 1e-5
        assert torch.cat([table.grad for table in tables(ours)]).abs().max() > 0


def test_equal_threads_share_a_place_only_where_their_numbers_agree() -> None:
    def packed(*numbers: int) -> Any:
        return pack_views(calls_of([path(number, (7, 8, 9)) for number in numbers]))

    assert (packed(1).unique_tokens, packed(1, 1).unique_tokens) == (4, 4)  # 5 6 7 8; nothing reads the 9
    apart = packed(1, 2)
    assert apart.input_ids.tolist() == [5, 6, 7, 8, 7, 8]
    assert apart.threads.tolist() == [0, 0, 1, 1, 2, 2]
    unnumbered = pack_views(calls_of([replace(path(k, (7, 8, 9)), thread_vectors=False) for k in (1, 2)]))
    assert (unnumbered.unique_tokens, unnumbered.threads) == (4, None)


def test_flat_rows_beside_numbered_views_are_the_roots() -> None:
    views = calls_of([path(2, (7, 8, 9))])
    packed = pack_calls([[5, 6, 9], [0]], [1, 1], [None, *views])
    assert packed.input_ids.tolist() == [5, 6, 5, 6, 7, 8]
    assert packed.threads is not None and packed.threads.tolist() == [0, 0, 0, 0, 2, 2]


def test_gradient_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        model = with_vectors(tiny_model("tree")).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        packed = pack_views(calls_of(numbered(group(1, "stitched", forks=1.0))))
        packed_logps(model, packed).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*found)


def test_a_thread_without_a_vector_is_never_trained_as_one_with_another() -> None:
    packed = pack_views(calls_of([path(COUNT + 1, (7, 8, 9))]))
    with pytest.raises(EngineError, match="vectors for 6 threads, but a token is of thread 7"):
        packed_logps(with_vectors(tiny_model("tree")), packed)
    with pytest.raises(EngineError, match="vectors for 0 threads"):
        packed_logps(tiny_model("tree"), packed)
    with pytest.raises(EngineError, match="every token's thread"):
        with_vectors(tiny_model("tree"))(torch.tensor([[5, 6]]))


class NumberedSampler(PreparedSampler):
    """Plays random stitched trajectories whose log-probs are those by hand, plus noise."""

    def run(self, coroutines: Any) -> list[Solved]:
        model, played = with_vectors(tiny_model("sdpa")), []
        for number, coroutine in enumerate(coroutines):
            coroutine.close()
            end = (TOKENS.tag("</think>"), *TOKENS.text(self.rng.choice("12")), TOKENS.eos)
            prompt, letters = TOKENS.prompt(f"a{number // 4}="), TOKENS.text("ab12")
            one = replace(random_trajectory(self.rng, prompt, letters, end=end, depth=2), thread_vectors=True)
            segments = list(one.segments)
            for call in one.calls:
                logps = call_logps(model, one, call).tolist()
                noisy = tuple(value + self.rng.uniform(-self.noise, self.noise) for value in logps)
                segments[call.sampled] = replace(segments[call.sampled], logprobs=noisy)
            played.append(solved(replace(one, segments=tuple(segments))))
        return played


def numbered_trainer(folder: Path) -> Any:
    """A GRPO trainer of a model with vectors."""
    trainer = make_trainer(folder, packed=True, model=with_vectors(tiny_model("tree")))
    trainer.rollouts = replace(trainer.rollouts, sampler=NumberedSampler(7, 0.4))
    trainer.revival = Revival(trainer.rollouts)
    return trainer


def test_the_policy_gradient_is_that_of_brute_force_also_of_the_vectors(tmp_path: Path) -> None:
    trainer = numbered_trainer(tmp_path)
    ours = step_gradient(trainer)
    model, total, count = with_vectors(tiny_model("sdpa")), torch.zeros(()), 0
    for one in handed_out(trainer):
        advantage = one.advantage
        for call in one.trajectory.calls:
            logps = call_logps(model, one.trajectory, call)
            ratio = (logps - torch.tensor(one.trajectory.segments[call.sampled].logprobs)).exp()
            total = total - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage).sum()
            count += len(logps)
    (total / count).backward()
    assert error(ours, torch.cat([p.grad.flatten() for p in model.parameters()])) < 1e-5
    own = torch.cat([table.grad.flatten() for table in tables(trainer.policy())])
    assert error(own, torch.cat([table.grad.flatten() for table in tables(model)])) < 1e-5


def test_a_step_of_grpo_and_one_of_sft_move_the_vectors(tmp_path: Path) -> None:
    trainer = numbered_trainer(tmp_path)
    trainer.args.max_steps = 1
    trainer.train()
    for after, before in zip(tables(trainer.policy()), tables(with_vectors(tiny_model("tree"))), strict=True):
        assert (after[:3] - before[:3]).abs().amin() > 1e-4
    sent = trainer.rollouts.sampler.loaded[0]
    assert sum("thread_vectors" in name for name in sent) == 2

    model = with_vectors(tiny_model("tree"))
    add_fused_lm_head(model)
    trajectories = numbered(group(2, "stitched", "stitched", forks=1.0))
    batch = collate_tries(list(trajectory_rows(trajectories)), model=model)
    model(**{k: v for k, v in batch.items() if k != "labels"}, fused_lm_head=True).log_probs.sum().backward()
    reference = with_vectors(tiny_model("sdpa"))
    torch.cat([call_logps(reference, t, call) for t in trajectories for call in t.calls]).sum().backward()
    own, theirs = (torch.cat([table.grad.flatten() for table in tables(m)]) for m in (model, reference))
    assert error(own, theirs) < 1e-5
    assert "threads" not in collate_tries(list(trajectory_rows(group(2, "stitched"))), model=tiny_model("tree"))


def test_a_batch_without_threads_still_uses_every_parameter() -> None:
    """Ranks that use other parameters than each other hang."""
    model = with_vectors(tiny_model("tree"))
    add_fused_lm_head(model)
    alone = replace(
        path(1, (7, 8)), segments=(Segment("prompt", (5, 6)), Segment("sampled", (7, 8), (-1.0,) * 2, (0,)))
    )
    batch = collate_tries(list(trajectory_rows([alone])), model=model)
    model(**{k: v for k, v in batch.items() if k != "labels"}, fused_lm_head=True).log_probs.sum().backward()
    assert all(torch.equal(table.grad, torch.zeros_like(table)) for table in tables(model))
