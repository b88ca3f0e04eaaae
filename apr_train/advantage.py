"""Advantages over trajectories: a baseline per group, never per row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.reward import Reward, Scope


@dataclass(frozen=True, slots=True)
class AdvantageRule:
    """How rewards become advantages; see AlgorithmConfig for the words."""

    baseline: str = "group_mean"
    scale: str = "none"
    apart: bool = False


def group_advantages(rewards_PG: Tensor, scale: str, baseline: str = "group_mean") -> Tensor:
    """A = (r - baseline) / scale. rewards_PG: float (P, G), NaN where the verifier failed; returns (P, G).

    baseline: `group_mean`, or `leave_one_out`, the mean of the other members (RLOO): r - mean * n / (n - 1).
    scale: `none` (P-GRPO, arXiv 2512.07843), `group`, the group's standard deviation (GRPO), or `batch`, that of all
    rewards given (PAPO, arXiv 2512.07461); deviations are of a sample (n - 1), plus 1e-4.

    A trajectory that was not judged takes no part in any of them and gets 0, as does a group of one judged member or of
    equal rewards.

    >>> group_advantages(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), "none")
    tensor([[ 0.2500,  0.2500,  0.2500, -0.7500]])
    >>> group_advantages(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), "none", "leave_one_out")
    tensor([[ 0.3333,  0.3333,  0.3333, -1.0000]])
    """
    judged = ~rewards_PG.isnan()
    count = judged.sum(1, keepdim=True)
    rewards = rewards_PG.nan_to_num(0.0)
    centred = torch.where(judged, rewards - rewards.sum(1, keepdim=True) / count.clamp(min=1), 0.0)
    deviation = _deviation(rewards_PG, centred, count, scale)
    if baseline == "leave_one_out":
        centred = centred * count / (count - 1).clamp(min=1)
    elif baseline != "group_mean":
        raise ValueError(f"unknown baseline {baseline!r}; known: group_mean, leave_one_out")
    return centred / deviation


def _deviation(rewards_PG: Tensor, centred_PG: Tensor, count_P1: Tensor, scale: str) -> Tensor:
    """What advantages are divided by, broadcast over (P, G)."""
    if scale == "none":
        return torch.ones((), device=rewards_PG.device)
    if scale == "group":
        return (centred_PG.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt() + 1e-4
    if scale == "batch":
        judged = rewards_PG[~rewards_PG.isnan()]
        return (judged.std() if len(judged) > 1 else judged.new_zeros(())) + 1e-4
    raise ValueError(f"unknown advantage scale {scale!r}; known: none, group, batch")


def scope_advantages(values_NT: Tensor, reward: Reward, group_size: int, rule: AdvantageRule) -> dict[str, Tensor]:
    """Advantages (N,) of "root" calls and of "threads" calls, from each term's value (N, T) in the reward's order.

    N trajectories stand group by group. Root calls are paid by terms of scope all and root, thread calls by all and
    threads. With `apart`, the terms that judge the answer and the others are each baselined and scaled by themselves,
    and then added: in a group that is right throughout, a small bonus keeps its own size.
    """
    terms = list(reward.terms.values())

    def advantages(scope: Scope, about_answer: tuple[bool, ...]) -> Tensor:
        chosen = [
            index
            for index, each in enumerate(terms)
            if each.scope in ("all", scope) and each.term.judges_answer in about_answer
        ]
        totals_PG = values_NT[:, chosen].sum(1).view(-1, group_size)
        return group_advantages(totals_PG, rule.scale, rule.baseline).flatten()

    kinds: Sequence[tuple[bool, ...]] = [(True,), (False,)] if rule.apart else [(True, False)]
    return {scope: sum_of([advantages(scope, kind) for kind in kinds]) for scope in ("root", "threads")}


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Their elementwise sum."""
    return torch.stack(list(tensors)).sum(0)
