"""The update is the policy gradient of what was sampled, however rows are packed, split or padded."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainers import (
    gradient_norms,
    handed_out,
    make_trainer,
    rows_of_a_step,
    separate_logps,
    solved,
    step_gradient,
    tiny_model,
)

from apr_train.advantage import group_advantages
from apr_train.gap import GapError, GapGate
from apr_train.rows import call_rows, distinct_prefixes, pad_rows, split_groups
from rollout.strategies.base import Solved


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_packing_changes_no_gradient(tmp_path: Path) -> None:
    packed, rows = (step_gradient(make_trainer(tmp_path, packed=p)) for p in (True, False))
    assert rows.norm() > 1e-3 and error(packed, rows) < 1e-5


def test_gradient_is_the_clipped_policy_gradient_by_brute_force(tmp_path: Path) -> None:
    """-1/T sum over trajectories of A * grad of min(ratio, clip(ratio)), one plain forward per call."""
    trainer = make_trainer(tmp_path, packed=True, noise=0.4)  # ratios up to e^0.4 leave [0.8, 1.28]: clipping matters
    ours = step_gradient(trainer)
    model, total, count = tiny_model("sdpa"), torch.zeros(()), 0
    for one in handed_out(trainer):
        advantage = one.advantage
        for context, sampled, logprobs in one.trajectory.rows():
            ratio = (separate_logps(model, context, sampled) - torch.tensor(logprobs)).exp()
            total = total - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage).sum()
            count += len(sampled)
    (total / count).backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert error(ours, theirs) < 1e-5


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_change_no_gradient(tmp_path: Path, packed: bool, parts: int) -> None:
    whole = step_gradient(make_trainer(tmp_path, packed=packed))
    assert error(step_gradient(make_trainer(tmp_path, packed=packed, micro_batches=parts)), whole) < 1e-5


def test_inert_rows_change_no_gradient(tmp_path: Path) -> None:
    plain, padded = make_trainer(tmp_path, packed=True), make_trainer(tmp_path, packed=True)
    padded._most_rows = lambda part: len(part["advantages"]) + 3
    assert error(step_gradient(padded), step_gradient(plain)) < 1e-6


def test_a_rank_of_inert_rows_only_still_runs_its_forward(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, packed=True)
    inputs = trainer._prepare_inputs(rows_of_a_step(trainer))
    nothing = {k: v[:0] for k, v in inputs.items() if v.dim()}
    batch = pad_rows(nothing, 2) | {"num_items_in_batch": inputs["num_items_in_batch"]}
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.item() == 0 and all(not p.grad.any() for p in trainer.model.parameters())


def test_two_steps_packed_and_unpacked_reach_the_same_weights(tmp_path: Path) -> None:
    weights, norms = [], []
    for packed in (True, False):
        trainer = make_trainer(tmp_path, packed=packed, micro_batches=2)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        norms.append(gradient_norms(trainer))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert error(weights[0], weights[1]) < 1e-4  # Adam divides by sqrt(v): it enlarges rounding of tiny gradients


def test_weights_reach_the_sampler_before_each_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, packed=True)
    trainer.train()
    loaded = trainer.rollouts.sampler.loaded
    assert len(loaded) == 2
    assert any(not torch.equal(loaded[0][name], loaded[1][name]) for name in loaded[0])
    names = dict(trainer.model.named_parameters())
    assert loaded[0].keys() == names.keys()


@pytest.mark.parametrize("packed", [True, False])
def test_forced_tokens_train_nothing(tmp_path: Path, packed: bool) -> None:
    """The loss has a gradient in the log-prob of each sampled token, and in no other's: padding, forced, prompt."""
    trainer = make_trainer(tmp_path, packed=packed)
    inputs = trainer._prepare_inputs(rows_of_a_step(trainer))
    inputs["advantages"] = torch.ones_like(inputs["advantages"])
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    scored: list[torch.Tensor] = []
    score = trainer._get_per_token_logps_and_entropies

    def kept(*args: object, **options: object) -> tuple[torch.Tensor, torch.Tensor, None]:
        logps, entropies, _ = score(*args, **options)
        logps.retain_grad()
        scored.append(logps)
        return logps, entropies, None

    trainer._get_per_token_logps_and_entropies = kept
    trainer.compute_loss(trainer.model, inputs).backward()
    moved = scored[0].grad != 0
    assert torch.equal(moved, inputs["completion_mask"].bool())


def test_rows_hold_the_sampled_ids_as_targets_and_nothing_else(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, packed=True)
    inputs = trainer._prepare_inputs(rows_of_a_step(trainer))
    collected = handed_out(trainer)
    targets = inputs["completion_ids"][inputs["completion_mask"].bool()].tolist()
    sampled = [
        t for each in collected for call in each.trajectory.calls for t in each.trajectory.segments[call.sampled].ids
    ]
    assert targets == sampled
    assert any(s.origin == "forced" for each in collected for s in each.trajectory.segments)


def test_one_advantage_per_trajectory_whatever_its_number_of_calls(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, packed=True)
    inputs = trainer._prepare_inputs(rows_of_a_step(trainer))
    rows, collected = inputs["advantages"].tolist(), handed_out(trainer)
    for start in range(0, 16, 4):
        group = collected[start : start + 4]
        for one in group:
            assert one.advantage == pytest.approx(one.reward - sum(each.reward for each in group) / 4)
            assert rows[: len(one.trajectory.calls)] == pytest.approx([one.advantage] * len(one.trajectory.calls))
            del rows[: len(one.trajectory.calls)]
    assert not rows


@pytest.mark.parametrize("credit", ["broadcast", "per_call_mean"])
@pytest.mark.parametrize("empty", [1, 4, 16])
def test_trajectories_without_a_call_train_nothing_and_stop_nobody(tmp_path: Path, empty: int, credit: str) -> None:
    """Prompts that leave no room: one of a group, a whole group, all of a step."""
    trainer = make_trainer(tmp_path, packed=True, micro_batches=2, credit=credit)
    sample = trainer.rollouts.sampler.run

    def run(coroutines: Any) -> list[Solved]:
        played = [each.trajectory for each in sample(coroutines)]
        none = [replace(each, segments=each.segments[:1], calls=(), outcome="truncated") for each in played[:empty]]
        return [solved(each) for each in [*none, *played[empty:]]]

    trainer.rollouts.sampler.run = run
    gradient = step_gradient(trainer)
    assert gradient.isfinite().all() and (gradient.norm() > 1e-4) == (empty < 16)
    told = [one.trainer_logprobs for one in handed_out(trainer)]
    assert told[:empty] == [[]] * empty and all(told[empty:])


def test_baseline_by_hand() -> None:
    advantages = group_advantages(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), "none")
    assert advantages.tolist() == [[0.25, 0.25, 0.25, -0.75]]
    scaled = group_advantages(torch.tensor([[2.0, 0.0]]), "group")
    assert torch.allclose(scaled, torch.tensor([[1.0, -1.0]]) / (2**0.5 + 1e-4))


def test_a_failed_verifier_takes_no_part_in_the_baseline() -> None:
    advantages = group_advantages(torch.tensor([[1.0, 0.0, float("nan")], [float("nan"), 1.0, float("nan")]]), "none")
    assert advantages.tolist() == [[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]


def test_groups_are_never_torn_between_micro_batches(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, packed=True)
    batch = trainer._generate_and_score_completions(rows_of_a_step(trainer))
    parts = split_groups(batch, 3, packed=True)
    seen = [set(part["group"].tolist()) for part in parts]
    assert set.union(*seen) == {0, 1, 2, 3} and sum(map(len, seen)) == 4 and all(seen)
    assert sum(len(part["advantages"]) for part in parts) == len(batch["advantages"])
    with pytest.raises(ValueError, match="micro_batches"):
        split_groups(batch, 5, packed=True)


@given(rows=st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=8))
def test_a_shared_beginning_weighs_once(rows: list[list[int]]) -> None:
    prefixes = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    assert distinct_prefixes(rows) == len(prefixes)


def test_a_group_of_many_alike_calls_is_not_taken_for_the_heaviest() -> None:
    contexts = [[*range(40), last] for last in range(50, 58)] + [[*range(start, start + 30)] for start in (60, 90, 120)]
    rows = len(contexts)
    batch: dict[str, torch.Tensor] = {
        "prompt_ids": torch.tensor([[0] * (41 - len(context)) + context for context in contexts]),
        "prompt_mask": torch.tensor([[0] * (41 - len(context)) + [1] * len(context) for context in contexts]),
        "completion_ids": torch.ones(rows, 1, dtype=torch.long),
        "completion_mask": torch.zeros(rows, 1, dtype=torch.long),
        "advantages": torch.zeros(rows),
        "group": torch.tensor([0] * 8 + [1, 2, 3]),
    }
    # 48 tokens for eight calls that begin alike, 30 for each of the others: two and two is the even way
    found = [sorted(set(part["group"].tolist())) for part in split_groups(batch, 2, packed=True)]
    assert sorted(map(len, found)) == [2, 2]
    alone = [sorted(set(part["group"].tolist())) for part in split_groups(batch, 2, packed=False)]
    assert [0] in alone


def test_rows_without_trajectories_are_refused_by_shape() -> None:
    assert call_rows([], [], 1, 0)["advantages"].shape == (0,)


def test_the_gap_gate_stops_a_run_that_samples_another_policy() -> None:
    gate = GapGate(warn=0.1, stop=0.5)
    assert gate.check(0.2) == 0.2
    for gap in (0.6, float("inf")):
        with pytest.raises(GapError, match="gap_stop"):
            gate.check(gap)
    assert math.isnan(gate.check(math.nan))  # such a step is skipped, by the trainer
    assert gate.mean == 0.2
