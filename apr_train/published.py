"""The masks and positions that the public trainers give a response, which are not those that it was sampled under.

| preset | siblings | positions |
|---|---|---|
| parallel_r1_seen | later ones see earlier ones | running on; the sampler never showed them |
| parallel_r1_unseen | hidden | as a stitched sampler's; but its sampler reads the join as flat text |
| multiverse, npr | hidden between their tags only | one early for each token between fork and opening tag |

The newline before each opening tag of Multiverse and NPR reads all earlier threads, and its own thread reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apr_train.chains import Chain, merged, shifted
from apr_train.config import PUBLIC_MASKS
from apr_train.dag_packing import PackedCalls, TrajectoryCall
from apr_train.packing import IGNORE, PackingError
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory

TAGS: dict[str, tuple[str, str, str, str]] = {
    "multiverse": ("</Goal>", "<Path>", "</Path>", "<Conclusion>"),
    "npr": ("</guideline>", "<step>", "</step>", "<takeaway>"),
    "parallel_r1_unseen": ("<Parallel>", "<Path>", "</Path>", "</Parallel>"),
}
"""Where each parser sees a fork, a thread's first and last token, and the join."""
assert TAGS.keys() < PUBLIC_MASKS.keys()


@dataclass(frozen=True, eq=False)
class Dense:
    """A response as the root's last call read and continued it: int64 ids and positions (N,), mask (N, N) bool, True
    where the token of the row sees that of the column."""

    ids: Tensor
    positions: Tensor
    mask: Tensor


def dense(trajectory: Trajectory, preset: str, tokens: Tokens) -> Dense:
    """The transcript under one of PUBLIC_MASKS. Raises PackingError where the published parser refuses it: a block that
    is not closed, tags out of order."""
    ids = trajectory.ids(transcript(trajectory))
    if preset == "parallel_r1_seen":
        return plain_causal(ids)
    fork, opens, closes, join = map(tokens.tag, TAGS[preset])
    return hide_between_tags(ids, fork, opens, closes, join)


def plain_causal(ids: Sequence[int]) -> Dense:
    """One flat text."""
    return Dense(torch.tensor(ids), torch.arange(len(ids)), torch.ones(len(ids), len(ids), dtype=torch.bool).tril())


@dataclass
class _Block:
    fork: int
    """Position of the fork tag."""
    longest: int = 0
    opened: int | None = None
    spans: list[slice] = field(default_factory=list[slice])


def hide_between_tags(ids: Sequence[int], fork: int, opens: int, closes: int, join: int) -> Dense:
    """Causal but for threads of one block, from opening to closing tag; the rest of the text moves with the tags.

    An opening tag has the position after the fork tag, the join tag that after the longest thread; what stands before
    a tag stays where it was. Raises PackingError as `dense` does.

    >>> hide_between_tags([9, 0, 1, 5, 2, 0, 1, 2, 3], fork=9, opens=1, closes=2, join=3).positions.tolist()
    [0, 1, 1, 2, 3, 4, 1, 2, 4]
    """
    flat = plain_causal(ids)
    positions, mask, stack, shift = flat.positions.clone(), flat.mask, list[_Block](), 0
    for i, token in enumerate(ids):
        if token in (opens, closes, join):
            _need(bool(stack), i, "outside a block")
            block = stack[-1]
            _need((block.opened is not None) == (token == closes), i, "out of order")
            if token == opens:
                block.opened, shift = i, block.fork + 1 - i
            elif token == join:
                shift = block.fork + block.longest + 1 - i
                for span in block.spans:
                    for other in block.spans:
                        if span != other:
                            mask[span, other] = False
                stack.pop()
        positions[i] = i + shift
        if token == fork:
            stack.append(_Block(int(positions[i])))
        elif token == closes:
            block = stack[-1]
            assert block.opened is not None
            block.spans.append(slice(block.opened, i + 1))
            block.longest, block.opened = max(block.longest, int(positions[i]) - block.fork), None
    _need(not stack, len(ids), "before the block is closed")
    return Dense(flat.ids, positions, mask)


def scored_calls(trajectory: Trajectory, preset: str, tokens: Tokens) -> list[bool]:
    """Of each call, whether the transcript holds it: what the root's last call read or wrote. None where the published
    parser refuses the transcript, as NPR's trainer drops it."""
    try:
        dense(trajectory, preset, tokens)
    except PackingError:
        return [False] * len(trajectory.calls)
    whole = set(transcript(trajectory))
    return [{*call.context, call.sampled} <= whole for call in trajectory.calls]


def pack_published(calls: Sequence[TrajectoryCall], preset: str, tokens: Tokens) -> PackedCalls:
    """Packs calls that `scored_calls` lets through: each trajectory's transcript once, trajectories side by side.

    Raises PackingError for calls of a transcript that the published parser refuses, and for a sampled segment that does
    not stand directly after what it read.
    """
    parts: list[Dense] = []
    chains: list[Chain] = []
    begins: dict[int, dict[int, int]] = {}
    where: list[Tensor] = []
    size = raw = 0
    for call in calls:
        trajectory = call.trajectory
        if trajectory.thread_vectors:
            raise PackingError(f"{trajectory.problem_id}: no public trainer's mask says whose a token's vector is")
        if id(trajectory) not in begins:
            parts.append(dense(trajectory, preset, tokens))
            chains += [shifted(chain, size) for chain in chains_of(parts[-1].mask.numpy())]
            begins[id(trajectory)] = _places(trajectory, size)
            size += len(parts[-1].ids)
        asked, own = trajectory.calls[call.index], begins[id(trajectory)]
        read = [s for s in asked.context if trajectory.segments[s].ids]
        begin, count = own[asked.sampled], len(trajectory.segments[asked.sampled].ids)
        if own[read[-1]] + len(trajectory.segments[read[-1]].ids) != begin:
            raise PackingError(f"{trajectory.problem_id}, call {call.index} does not follow what it read")
        where.append(torch.arange(begin - 1, begin - 1 + count))
        raw += sum(len(trajectory.segments[s].ids) for s in read) + count - 1
    ids = torch.cat([part.ids for part in parts])
    labels, trained = torch.full_like(ids, IGNORE), torch.cat(where)
    labels[trained] = ids[trained + 1]
    return PackedCalls(
        input_ids=ids,
        position_ids=torch.cat([part.positions for part in parts]),
        shift_labels=labels,
        chains=tuple(chains),
        where=tuple(where),
        raw_tokens=raw,
    )


def chains_of(mask_NN: NDArray[np.bool_]) -> list[Chain]:
    """The chains of a mask whose rows see themselves and only what lies before them.

    >>> chains_of(np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=np.bool_))
    [Chain(start=0, end=2, prefix=(), steps=None), Chain(start=2, end=3, prefix=((0, 1),), steps=None)]
    """
    chains: list[Chain] = []
    for i, row in enumerate(mask_NN):
        if chains:
            start = chains[-1].start
            if row[start : i + 1].all() and np.array_equal(row[:start], mask_NN[start, :start]):
                chains[-1] = Chain(start, i + 1, chains[-1].prefix)
                continue
        chains.append(Chain(i, i + 1, merged((int(j), int(j) + 1) for j in np.flatnonzero(row[:i]))))
    return chains


def transcript(trajectory: Trajectory) -> tuple[int, ...]:
    """The segments that the root's last call read, and the one it wrote; none where it has no call."""
    root = [call for call in trajectory.calls if not trajectory.segments[call.sampled].thread]
    return (*root[-1].context, root[-1].sampled) if root else ()


def _places(trajectory: Trajectory, begin: int) -> dict[int, int]:
    """Where each segment of the transcript begins."""
    found: dict[int, int] = {}
    for segment in transcript(trajectory):
        found[segment] = begin
        begin += len(trajectory.segments[segment].ids)
    return found


def _need(holds: bool, place: int, what: str) -> None:
    if not holds:
        raise PackingError(f"the response cannot be parsed by its tags: at token {place} a tag {what}")
