"""Training under a public trainer's mask: loss, rows and demonstrations see that mask, and only that one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_published import response
from torch import Tensor
from trainers import TOKENS, handed_out, make_trainer, step_gradient, tiny_model
from trl.trainer.utils import add_fused_lm_head

from apr_train import published, sft
from apr_train.compose import load
from apr_train.config import PUBLIC_MASKS
from apr_train.masks import AsPublished, masks_of
from apr_train.rows import call_rows, structured_calls
from apr_train.tasks.base import TaskError
from rollout.trajectory import Trajectory

SEEN = AsPublished("parallel_r1_seen", TOKENS)


def flat_logps(model: Any, trajectory: Trajectory) -> list[Tensor]:
    """Of every call, from one plain causal forward over the whole response: what Parallel-R1 "Seen" trains."""
    order = published.transcript(trajectory)
    ids = torch.tensor(trajectory.ids(order))
    logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    found: list[Tensor] = []
    for call in trajectory.calls:
        before = sum(len(trajectory.segments[s].ids) for s in order[: order.index(call.sampled)])
        found.append(logps[before - 1 : before - 1 + len(trajectory.segments[call.sampled].ids)])
    return found


def gradients(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("parts", [1, 2])
def test_an_update_is_that_of_the_public_trainer_and_not_of_the_sampler(tmp_path: Path, parts: int) -> None:
    """On policy by its own log-probs: the gradient is the mean of advantage x grad log p, whatever the sampler said."""
    trainer = make_trainer(tmp_path, packed=True, noise=0.4, micro_batches=parts)
    trainer.masks = SEEN
    ours = step_gradient(trainer)
    model, total, count = tiny_model("sdpa"), torch.zeros(()), 0
    collected = handed_out(trainer)
    for one in collected:
        logps = torch.cat(flat_logps(model, one.trajectory))
        total, count = total - one.advantage * logps.sum(), count + len(logps)
    (total / count).backward()
    assert any(len(each.trajectory.calls) > 2 for each in collected)  # else no sibling was there to be seen
    assert (ours - gradients(model)).abs().max() <= 1e-5 * gradients(model).abs().max()
    assert trainer._metrics["train"]["gap/unscored_calls"] == [0.0]
    assert trainer._metrics["train"]["gap/logprob_mean_abs"][0] > 0.1  # the gate still compares with the sampler


def test_a_response_that_a_public_trainer_cannot_read_trains_nothing_and_leaves_no_hole() -> None:
    tokens, whole = response("npr", "12", "3")
    cut = replace(whole, calls=whole.calls[:3], outcome="truncated")
    masks = AsPublished("npr", tokens)
    credited = [[1.0] * 4, *[[None] * 3] * 3]  # as the trainer leaves out what cannot be scored
    rows = call_rows([whole, cut, cut, cut], credited, 2, 0)
    assert rows["group"].tolist() == [0, 0, 0, 0, 1]
    assert rows["completion_mask"].sum(1).tolist() == [len(whole.segments[c.sampled].ids) for c in whole.calls] + [0]
    assert rows["call"].tolist() == [0, 1, 2, 3, -1]
    assert [call.index for call in structured_calls([whole, cut], masks).values()] == [0, 1, 2, 3, 0, 1, 2]


def test_demonstrations_train_under_the_mask_too() -> None:
    tokens, first = response("npr", "12", "3", "31")
    _, second = response("npr", "2", "13")
    model = tiny_model("tree")
    model.resize_token_embeddings(len(tokens.tokenizer))
    masks = AsPublished("npr", tokens)
    batch = sft.collate_tries(list(sft.trajectory_rows([first, second], masks)), masks=masks)
    add_fused_lm_head(model)
    model(**{k: v for k, v in batch.items() if k != "labels"}, fused_lm_head=True).log_probs.sum().backward()
    ours = gradients(model).clone()
    model.zero_grad()
    for trajectory in (first, second):
        row = published.dense(trajectory, "npr", tokens)
        mask, places = row.mask[None, None], row.positions[None]
        logits = model(input_ids=row.ids[None], position_ids=places, attention_mask=mask, use_cache=False).logits[0]
        logps = logits[:-1].log_softmax(-1).gather(1, row.ids[1:, None])[:, 0]
        origins = [trajectory.segments[s].origin for s in published.transcript(trajectory)]
        lengths = [len(trajectory.segments[s].ids) for s in published.transcript(trajectory)]
        sampled = torch.repeat_interleave(torch.tensor([o == "sampled" for o in origins]), torch.tensor(lengths))
        logps[sampled[1:]].sum().backward()
    assert (ours - gradients(model)).abs().max() <= 1e-5 * ours.abs().max()
    cut = replace(first, calls=first.calls[:3], outcome="truncated")
    with pytest.raises(TaskError, match="cannot be scored"):
        sft.trajectory_rows([cut], masks)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("unscored", [{1}, {0, 1, 2, 3}])
def test_a_step_whose_groups_cannot_be_scored_trains_the_others(tmp_path: Path, parts: int, unscored: set[int]) -> None:
    """Group 1 alone, and all four: a whole micro-batch of rows that train nothing."""

    class Some(AsPublished):
        def scored(self, trajectory: Trajectory) -> list[bool]:
            (group,) = [g for g in range(4) if trajectory.segments[0].ids == TOKENS.prompt(f"a{g}=")]
            return [group not in unscored] * len(trajectory.calls)

    def gradient_of(parts: int) -> tuple[Tensor, float]:
        trainer = make_trainer(tmp_path, packed=True, micro_batches=parts)
        trainer.masks = Some(SEEN.preset, SEEN.tokens)
        found = step_gradient(trainer)
        return found, trainer._metrics["train"]["gap/unscored_calls"][0]

    (whole, share), (found, _) = gradient_of(1), gradient_of(parts)
    assert torch.isfinite(found).all()
    assert (found - whole).abs().max() <= 1e-5 * max(float(whole.abs().max()), 1.0)
    assert bool(whole.any()) == (len(unscored) < 4) and (share == 1.0) == (len(unscored) == 4) and share > 0


def test_every_public_mask_has_a_configuration() -> None:
    for preset, dialect in PUBLIC_MASKS.items():
        config = load([f"dialect={preset}_as_published"])
        assert config.dialect.mask == preset
        assert config.dialect.name == dialect
    assert masks_of(load([]).dialect.mask, TOKENS).exact
