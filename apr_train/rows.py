"""Trajectories as the padded call rows that TRL's loss takes, split into micro-batches of whole groups."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from apr_train.credit import CallAdvantages
from apr_train.dag_packing import TrajectoryCall
from apr_train.masks import EXACT, Masks
from rollout.trajectory import Trajectory

Rows = dict[str, Tensor]
"""prompt_ids, prompt_mask (B, P) left-padded; completion_ids, completion_mask, old_per_token_logps (B, C) right-padded;
advantages (B,); group (B,), the index of each row's prompt group; call (B,), the number of the row's call among all
calls of the trajectories, in order, or -1 of an inert row. Row = one call; every sampled token that is trained is in
one row."""


def structured_calls(trajectories: Sequence[Trajectory], masks: Masks = EXACT) -> dict[int, TrajectoryCall]:
    """By their numbers, as in `Rows`, the calls whose ids alone do not say what they see under `masks`."""
    calls = [
        (TrajectoryCall(trajectory, index), structured)
        for trajectory in trajectories
        for index, structured in enumerate(masks.structured(trajectory))
    ]
    return {number: call for number, (call, structured) in enumerate(calls) if structured}


def call_rows(trajectories: Sequence[Trajectory], advantages: CallAdvantages, group_size: int, pad_id: int) -> Rows:
    """One row per call that has an advantage.

    Trajectories come group by group; a group without a row gets one that trains nothing. `old_per_token_logps` are the
    sampler's own log-probs, so that the ratio of the loss is that of the policy that sampled.
    """
    calls = [
        (*row, advantage, index // group_size)
        for index, (trajectory, credited) in enumerate(zip(trajectories, advantages, strict=True))
        for row, advantage in zip(trajectory.rows(), credited, strict=True)
    ]
    rows = [(*call, number) for number, call in enumerate(calls) if call[3] is not None]
    missing = set(range(len(trajectories) // group_size)) - {row[4] for row in rows}
    rows += [([pad_id], (), (), 0.0, group, -1) for group in sorted(missing)]
    longest_context = max((len(row[0]) for row in rows), default=1)
    longest_sampled = max((1, *(len(row[1]) for row in rows)))  # a column to mask, also where all rows are inert
    batch: Rows = {
        "prompt_ids": torch.full((len(rows), longest_context), pad_id),
        "prompt_mask": torch.zeros(len(rows), longest_context, dtype=torch.long),
        "completion_ids": torch.full((len(rows), longest_sampled), pad_id),
        "completion_mask": torch.zeros(len(rows), longest_sampled, dtype=torch.long),
        "old_per_token_logps": torch.zeros(len(rows), longest_sampled),
        "advantages": torch.tensor([row[3] for row in rows], dtype=torch.float32),
        "group": torch.tensor([row[4] for row in rows], dtype=torch.long),
        "call": torch.tensor([row[5] for row in rows], dtype=torch.long),
    }
    for b, (context, sampled, logprobs, *_) in enumerate(rows):
        batch["prompt_ids"][b, longest_context - len(context) :] = torch.tensor(context)
        batch["prompt_mask"][b, longest_context - len(context) :] = 1
        batch["completion_ids"][b, : len(sampled)] = torch.tensor(sampled)
        batch["completion_mask"][b, : len(sampled)] = 1
        batch["old_per_token_logps"][b, : len(sampled)] = torch.tensor(logprobs)
    return batch


def split_groups(batch: Rows, parts: int, *, packed: bool) -> list[Rows]:
    """Whole groups into `parts` micro-batches of about equal work: the heaviest group to the lightest part. What
    several rows begin with alike is computed once where they are packed, and so it weighs once.

    Raises ValueError when there are fewer groups than parts.
    """
    groups = batch["group"].unique().tolist()
    if len(groups) < parts:
        raise ValueError(f"{len(groups)} groups cannot fill {parts} micro-batches: lower algorithm.micro_batches")
    weight = {g: _tokens({key: value[batch["group"] == g] for key, value in batch.items()}, packed) for g in groups}
    shares: list[list[int]] = [[] for _ in range(parts)]
    for group in sorted(groups, key=lambda g: (-weight[g], g)):
        # an empty share first, so that no micro-batch is left without a group
        min(shares, key=lambda share: (bool(share), sum(weight[g] for g in share))).append(group)
    chosen = [torch.isin(batch["group"], torch.tensor(share, device=batch["group"].device)) for share in shares]
    return [_trimmed({key: value[rows] for key, value in batch.items()}) for rows in chosen]


def _tokens(batch: Rows, packed: bool) -> int:
    """What the rows hold; where they are packed, what is left of it when each shared beginning counts once."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1).bool()
    rows = [row[seen].cpu().numpy() for row, seen in zip(ids, mask, strict=True)]
    return distinct_prefixes(rows) if packed else sum(map(len, rows))


def distinct_prefixes(rows: Sequence[ArrayLike]) -> int:
    """How many tokens a trie of the rows has.

    >>> distinct_prefixes([[5, 6, 7], [5, 6, 8], [5, 6]])
    4
    """
    # In lexical order a row shares with those before it at most what it shares with its neighbour. Bytes of equal width
    # and the highest first have the order of what they say, and are compared without a loop.
    ordered = [np.frombuffer(each, ">u4") for each in sorted(np.array(row, ">u4").tobytes() for row in rows)]
    return sum(map(len, ordered)) - sum(map(_common, ordered, ordered[1:]))


def _common(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> int:
    """The length of what two rows begin with alike."""
    shorter = min(len(one), len(other))
    differ = one[:shorter] != other[:shorter]
    return int(differ.argmax()) if differ.any() else shorter


def cut_rows(batch: Rows, parts: int) -> list[Rows]:
    """The rows in `parts` runs of about equal tokens, in order, so that most shared prefixes stay together; a run may
    be empty, with columns all the same."""
    tokens_B = batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)
    middle_B = tokens_B.cumsum(0) - tokens_B / 2
    part_B = (middle_B * parts / tokens_B.sum()).long()
    return [_trimmed({key: value[part_B == part] for key, value in batch.items()}) for part in range(parts)]


def _trimmed(batch: Rows) -> Rows:
    """Without the columns that are padding in every row."""
    if not len(batch["advantages"]):
        return {key: value[:, :1] if value.dim() == 2 else value for key, value in batch.items()}
    prompt = int(batch["prompt_mask"].sum(1).max())
    completion = max(1, int(batch["completion_mask"].sum(1).max()))
    return {
        key: value[:, -prompt:] if key.startswith("prompt") else value[:, :completion] if value.dim() == 2 else value
        for key, value in batch.items()
    }


def pad_rows(batch: Rows, count: int) -> Rows:
    """Adds inert rows (one visible prompt token, nothing to train) until there are `count`.

    Ranks with unequal rows would crash gloo and hang NCCL where the loss gathers one number per row.
    """
    missing = count - len(batch["advantages"])
    padded = {key: torch.cat([value, value.new_zeros(missing, *value.shape[1:])]) for key, value in batch.items()}
    if missing:
        padded["prompt_mask"][-missing:, -1] = 1
        padded["call"][-missing:] = -1
    return padded
