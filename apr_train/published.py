"""The masks and positions that the public trainers give a stitched response: to compare with, never to train under.

| preset | siblings | positions |
|---|---|---|
| exact_stitched | hidden | a thread starts where its fork ends, the join where the longest thread ends |
| parallel_r1_seen | later ones see earlier ones | running on; the sampler never showed them |
| parallel_r1_unseen | hidden | as exact_stitched; but its sampler reads the join as flat text |
| multiverse, npr | hidden between their tags only | one early for each token between fork and opening tag |

The newline before each opening tag of Multiverse and NPR reads all earlier threads, and its own thread reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from apr_train.packing import PackingError
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory, look

TAGS: dict[str, tuple[str, str, str, str]] = {
    "multiverse": ("</Goal>", "<Path>", "</Path>", "<Conclusion>"),
    "npr": ("</guideline>", "<step>", "</step>", "<takeaway>"),
    "parallel_r1_unseen": ("<Parallel>", "<Path>", "</Path>", "</Parallel>"),
}
"""Where each parser sees a fork, a thread's first and last token, and the join."""
PRESETS = ("exact_stitched", "parallel_r1_seen", *TAGS)


@dataclass(frozen=True, eq=False)
class Dense:
    """A response as the root's last call read and continued it: int64 ids and positions (N,), mask (N, N) bool, True
    where the token of the row sees that of the column."""

    ids: Tensor
    positions: Tensor
    mask: Tensor


def dense(trajectory: Trajectory, preset: str, tokens: Tokens) -> Dense:
    """The transcript under one of PRESETS. Raises PackingError where the published parser refuses it: a block that is
    not closed, tags out of order."""
    if preset == "exact_stitched":
        return exact_stitched(trajectory)
    ids = trajectory.ids(_transcript(trajectory))
    if preset == "parallel_r1_seen":
        return plain_causal(ids)
    fork, opens, closes, join = map(tokens.tag, TAGS[preset])
    return hide_between_tags(ids, fork, opens, closes, join)


def exact_stitched(trajectory: Trajectory) -> Dense:
    """What the segments' parents say, whatever the trajectory was sampled under."""
    view = look(trajectory.segments, _transcript(trajectory), "stitched")
    lengths = [len(piece) for piece in view.pieces]
    piece_N = torch.repeat_interleave(torch.tensor(lengths))
    sees_PP = torch.zeros(len(lengths), len(lengths), dtype=torch.bool)
    for piece, seen in enumerate(view.sees):
        sees_PP[piece, list(seen)] = True
    own = (piece_N[:, None] == piece_N) & torch.ones(len(piece_N), len(piece_N), dtype=torch.bool).tril()
    positions = [start + offset for start, length in zip(view.starts, lengths, strict=True) for offset in range(length)]
    return Dense(torch.tensor(view.ids), torch.tensor(positions), own | sees_PP[piece_N][:, piece_N])


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


def published_logps(model: Any, trajectory: Trajectory, preset: str, tokens: Tokens) -> list[Tensor]:
    """log p of what each call sampled, (tokens,), in one dense forward under `preset`; empty for what the root's last
    call did not read. `model` attends by "sdpa" or "tree". The predictor is the last token of the call's context."""
    found, order = dense(trajectory, preset, tokens), _transcript(trajectory)
    device, begins, place = model.device, dict[int, int](), 0
    for segment in order:
        begins[segment] = place
        place += len(trajectory.segments[segment].ids)
    ids, positions, mask = (x[None].to(device) for x in (found.ids, found.positions, found.mask))
    logits = model(input_ids=ids, position_ids=positions, attention_mask=mask[:, None], use_cache=False).logits[0]
    logps: list[Tensor] = []
    for call in trajectory.calls:
        sampled = torch.tensor(trajectory.segments[call.sampled].ids, dtype=torch.long, device=device)
        seen = [s for s in call.context if trajectory.segments[s].ids]
        if call.sampled not in begins or not seen or not set(seen) <= begins.keys():
            logps.append(logits.new_zeros(0))
            continue
        first, begin = begins[seen[-1]] + len(trajectory.segments[seen[-1]].ids) - 1, begins[call.sampled]
        at = [first, *range(begin, begin + len(sampled) - 1)][: len(sampled)]
        logps.append(logits[at].float().log_softmax(-1).gather(1, sampled[:, None])[:, 0])
    return logps


def _transcript(trajectory: Trajectory) -> tuple[int, ...]:
    """The segments that the root's last call read, and the one it wrote."""
    call = [call for call in trajectory.calls if not trajectory.segments[call.sampled].thread][-1]
    return (*call.context, call.sampled)


def _need(holds: bool, place: int, what: str) -> None:
    if not holds:
        raise PackingError(f"the response cannot be parsed by its tags: at token {place} a tag {what}")
