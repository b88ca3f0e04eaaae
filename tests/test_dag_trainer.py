"""GRPO and SFT on stitched, synchronous and causal trajectories together, against one dense forward per call."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy_tokens
from stitched_trees import KINDS, Meaning, calls_of, error, group, one_call, random_trajectory
from torch import Tensor
from trainers import (
    BUDGET,
    TOKENS,
    PreparedSampler,
    gradient_norms,
    handed_out,
    make_trainer,
    rows_of_a_step,
    separate_logps,
    solved,
    step_gradient,
    tiny_model,
)
from trl.trainer.utils import add_fused_lm_head

from apr_train import sft
from apr_train.dag_packing import pack_views
from apr_train.grpo_trainer import ForkJoinGRPOTrainer
from apr_train.packing import IGNORE
from apr_train.rows import pad_rows
from apr_train.tree_attention import plan_attention
from rollout.demonstration import Block, Demonstration
from rollout.dialects import DIALECTS, make_dialect
from rollout.engines.replay import ReplayEngine
from rollout.errors import UserError
from rollout.orchestrator import run_trajectory
from rollout.strategies.base import Solved
from rollout.trajectory import Attention, Trajectory


class StitchedSampler(PreparedSampler):
    """Plays random trajectories of all kinds, with the log-probs of a dense forward per call, plus noise."""

    def __init__(self, seed: int, noise: float, kinds: tuple[Attention, ...] = (*KINDS, "stitched", "causal")) -> None:
        super().__init__(seed, noise)
        self.kinds = kinds

    def run(self, coroutines: Any) -> list[Solved]:
        for coroutine in coroutines:
            coroutine.close()
        model, played = tiny_model("sdpa"), []
        for number in range(16):
            kind = self.kinds[number % len(self.kinds)]
            eos = (TOKENS.tag("</think>"), *TOKENS.text(self.rng.choice("12")), TOKENS.eos)
            prompt, letters = TOKENS.prompt(f"a{number // 4}="), TOKENS.text("ab12")
            trajectory = random_trajectory(self.rng, prompt, letters, kind, end=eos, depth=2)
            played.append(self.judged(model, trajectory))
        return [solved(each) for each in played]

    def judged(self, model: Any, trajectory: Trajectory) -> Trajectory:
        segments = list(trajectory.segments)
        for call, logps in zip(trajectory.calls, dense_logps(model, trajectory), strict=True):
            noisy = tuple(value + self.rng.uniform(-self.noise, self.noise) for value in logps.tolist())
            segments[call.sampled] = replace(segments[call.sampled], logprobs=noisy)
        return replace(trajectory, segments=tuple(segments))


def dense_logps(model: Any, trajectory: Trajectory) -> list[Tensor]:
    """Of every call, one forward each, nothing shared."""
    flat = [separate_logps(model, context, sampled) for context, sampled, _ in trajectory.rows()]
    if trajectory.attention == "causal":
        return flat
    meaning = Meaning(trajectory)
    return [
        logps if trajectory.is_flat(call) else meaning.call_logps(model, call)
        for call, logps in zip(trajectory.calls, flat, strict=True)
    ]


def stitched_trainer(folder: Path, noise: float = 0.05, packed: bool = True, **options: Any) -> ForkJoinGRPOTrainer:
    trainer = make_trainer(folder, packed=packed, **options)
    trainer.rollouts = replace(trainer.rollouts, sampler=StitchedSampler(7, noise))
    return trainer


class Brute:
    """Stands in for `_packed_logps`: one dense forward per row, the plainest thing that can be right."""

    def __init__(self, trainer: ForkJoinGRPOTrainer) -> None:
        self.trainer, self.meanings = trainer, {}

    def __call__(self, model: Any, input_ids: Tensor, attention_mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        rows = []
        for b, call in enumerate(self.trainer._scoring["call"].tolist()):
            ids, real = input_ids[b], attention_mask[b].bool()
            context, sampled = ids[:-keep][real[:-keep]].tolist(), tuple(ids[-keep:][real[-keep:]].tolist())
            found = self.trainer.structured.get(call)
            if found is not None:
                logps = Meaning(found.trajectory).call_logps(model, found.trajectory.calls[found.index])
            else:
                logps = separate_logps(model, context, sampled) if sampled else torch.zeros(0)
            rows.append(torch.cat([logps, torch.zeros(keep - len(logps))]))
        return torch.stack(rows), torch.zeros(len(rows), keep)


def test_two_steps_of_the_trainer_reach_the_weights_of_a_dense_forward_per_call(tmp_path: Path) -> None:
    weights, norms = [], []
    for brute in (False, True):
        trainer = stitched_trainer(tmp_path, micro_batches=2)
        if brute:
            trainer._packed_logps = Brute(trainer)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        norms.append(gradient_norms(trainer))
    assert len(norms[0]) == 2
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert error(weights[0], weights[1]) < 1e-4  # Adam divides by sqrt(v): it enlarges rounding of tiny gradients


def test_the_trainers_gradient_is_the_clipped_policy_gradient_by_brute_force(tmp_path: Path) -> None:
    trainer = stitched_trainer(tmp_path, noise=0.4)
    ours = step_gradient(trainer)
    model, total, count = tiny_model("sdpa"), torch.zeros(()), 0
    collected = handed_out(trainer)
    for one in collected:
        trajectory, advantage = one.trajectory, one.advantage
        for call, logps in zip(trajectory.calls, dense_logps(model, trajectory), strict=True):
            ratio = (logps - torch.tensor(trajectory.segments[call.sampled].logprobs)).exp()
            total = total - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage).sum()
            count += len(logps)
    (total / count).backward()
    assert {each.trajectory.attention for each in collected} == {"causal", "stitched", "synchronous"}
    assert error(ours, torch.cat([p.grad.flatten() for p in model.parameters()])) < 1e-5


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_and_inert_rows_change_no_gradient(tmp_path: Path, parts: int) -> None:
    whole = step_gradient(stitched_trainer(tmp_path))
    padded = stitched_trainer(tmp_path, micro_batches=parts)
    padded._most_rows = lambda part: len(part["advantages"]) + 3
    assert error(step_gradient(padded), whole) < 1e-5


def test_inert_rows_name_no_call(tmp_path: Path) -> None:
    trainer = stitched_trainer(tmp_path)
    batch = trainer._generate_and_score_completions(rows_of_a_step(trainer))
    padded = pad_rows(batch, len(batch["call"]) + 2)
    assert padded["call"][-2:].tolist() == [-1, -1]
    flat = [one.trajectory.is_flat(call) for one in handed_out(trainer) for call in one.trajectory.calls]
    assert batch["call"].tolist() == list(range(len(flat)))
    assert set(trainer.structured) == {number for number, known in enumerate(flat) if not known}


def test_calls_without_credit_shift_no_other_calls_structure(tmp_path: Path) -> None:
    trainer = stitched_trainer(tmp_path, credit="frozen_threads")
    batch = trainer._generate_and_score_completions(rows_of_a_step(trainer))
    calls = [(one.trajectory, call) for one in handed_out(trainer) for call in one.trajectory.calls]
    assert len(batch["call"]) < len(calls)
    for b, number in enumerate(batch["call"].tolist()):
        trajectory, call = calls[number]
        ids = batch["completion_ids"][b][batch["completion_mask"][b].bool()].tolist()
        assert ids == list(trajectory.segments[call.sampled].ids)
        found = trainer.structured.get(number)
        assert found is None or found.trajectory.calls[found.index] is call


def test_forced_tokens_train_nothing(tmp_path: Path) -> None:
    """The loss has a gradient in the log-prob of each sampled token of the step, in order, and in no other's."""
    trainer = stitched_trainer(tmp_path)
    inputs = trainer._prepare_inputs(rows_of_a_step(trainer))
    inputs["advantages"] = torch.ones_like(inputs["advantages"])
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    scored: list[Tensor] = []
    score = trainer._get_per_token_logps_and_entropies

    def kept(*args: Any, **options: Any) -> tuple[Tensor, Tensor, None]:
        logps, entropies, _ = score(*args, **options)
        logps.retain_grad()
        scored.append(logps)
        return logps, entropies, None

    trainer._get_per_token_logps_and_entropies = kept
    trainer.compute_loss(trainer.model, inputs).backward()
    collected = [each.trajectory for each in handed_out(trainer)]
    sampled = [token for t in collected for call in t.calls for token in t.segments[call.sampled].ids]
    assert inputs["completion_ids"][scored[0].grad != 0].tolist() == sampled
    assert {segment.origin for t in collected for segment in t.segments} == {"prompt", "forced", "sampled"}


def test_plain_attention_refuses_rollouts_that_it_would_read_as_flat_text(tmp_path: Path) -> None:
    trainer = stitched_trainer(tmp_path, packed=False)
    with pytest.raises(UserError, match="attention=tree"):
        trainer._generate_and_score_completions(rows_of_a_step(trainer))


# ---- recorded by the orchestrator

DEMONSTRATIONS = {
    "flat": Demonstration(("ab", Block((("a", "12"), ("a", "12"), ("b", "2")), "x"), Block((("a", "1"),))), "7"),
    "nested": Demonstration(("ab", Block((("a", ("x", Block((("c", "1"), ("d", "22"))))), ("b", "2")))), "7"),
}


@pytest.mark.parametrize("kind", DEMONSTRATIONS)
@pytest.mark.parametrize("name", [name for name, dialect in DIALECTS.items() if "stitched" in dialect.joins])
def test_what_a_stitched_dialect_records_is_packed_as_a_dense_forward_per_call_reads_it(name: str, kind: str) -> None:
    tokens = toy_tokens(name)
    dialect = make_dialect(name, tokens, "stitched")
    engine = ReplayEngine(dialect.write(DEMONSTRATIONS[kind]), 1000)
    prompt = tokens.prompt("a=")
    trajectory = asyncio.run(run_trajectory(engine, dialect, "p", prompt, replace(BUDGET, threads=8, blocks=8)))
    assert (trajectory.attention, trajectory.outcome) == ("stitched", "answered")
    models = []
    for attention in ("tree", "sdpa"):
        models.append(tiny_model(attention))
        torch.manual_seed(1)
        models[-1].resize_token_embeddings(len(tokens.tokenizer))
    packed = pack_views(calls_of([trajectory]))
    logits = models[0](
        input_ids=packed.input_ids[None], position_ids=packed.position_ids[None], tree=plan_attention(packed)
    ).logits[0]
    table = logits.log_softmax(-1)
    for at, expected in zip(packed.where, Meaning(trajectory).logps(models[1]), strict=True):
        torch.testing.assert_close(table[at].gather(1, packed.shift_labels[at][:, None])[:, 0], expected)


# ---- SFT


def test_demonstrations_of_all_kinds_train_every_sampled_token_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories = [*group(1, *KINDS), *group(2, *KINDS), replace(one_call(), attention="causal")]
    recorded = iter(trajectories)
    monkeypatch.setattr(sft, "record_demonstration", lambda *_: next(recorded))

    class Problem:
        id, parts = "p", 1

    class Task:
        forms = ("sequential",)

    arguments: Any = (Task, [Problem] * len(trajectories), *[None] * 4)
    dataset = list(sft.demonstration_rows(*arguments, parallel_share=0.5, seed=0))
    flat = [all(map(trajectory.is_flat, trajectory.calls)) for trajectory in trajectories]
    assert [not example["trajectory"] for example in dataset] == flat and len(set(flat)) == 2
    dataset.append(dataset[1])
    trajectories.append(trajectories[1])
    batch = sft.collate_tries(dataset)
    sampled = sum(len(t.segments[call.sampled].ids) for t in trajectories for call in t.calls)
    ours, reference = tiny_model("tree"), tiny_model("sdpa")
    add_fused_lm_head(ours)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    ours(**inputs, fused_lm_head=True).log_probs.sum().backward()
    for trajectory in trajectories:
        torch.cat(dense_logps(reference, trajectory)).sum().backward()
    gradients = [torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (ours, reference)]
    assert int((batch["shift_labels"] != IGNORE).sum()) == sampled
    assert error(*gradients) < 1e-5
