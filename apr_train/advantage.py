"""Advantages over trajectories: a baseline per group, never per row."""

import torch
from torch import Tensor


def group_advantages(rewards_PG: Tensor, scale: str) -> Tensor:
    """A = r - mean over the group; `scale="group"` also divides by the group's standard deviation (GRPO).

    rewards_PG: float (P, G), NaN where the verifier failed. Such a trajectory takes no part in the baseline and gets
    advantage 0. A group of one judged trajectory, or of equal rewards, gets 0 everywhere. Returns (P, G).
    P-GRPO is `scale="none"` (arXiv 2512.07843, section 5).

    >>> group_advantages(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), "none")
    tensor([[ 0.2500,  0.2500,  0.2500, -0.7500]])
    """
    judged = ~rewards_PG.isnan()
    count = judged.sum(1, keepdim=True).clamp(min=1)
    rewards = rewards_PG.nan_to_num(0.0)
    centred = torch.where(judged, rewards - rewards.sum(1, keepdim=True) / count, 0.0)
    if scale == "none":
        return centred
    if scale == "group":
        deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        return centred / (deviation + 1e-4)
    raise ValueError(f"unknown advantage scale {scale!r}; known: none, group")
