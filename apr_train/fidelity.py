"""Is what is trained what was sampled? One dense forward per call beside the packed one, for checks and benchmarks."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from apr_train.dag_packing import PackedCalls, TrajectoryCall, pack_calls
from apr_train.published import pack_published, scored_calls
from apr_train.tree_attention import plan_attention
from rollout.engines import thread_vectors
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory


def pack_all(trajectories: Sequence[Trajectory]) -> PackedCalls:
    """All calls of all trajectories in one row, as the trainer packs them."""
    rows, contexts, calls = [], [], list[TrajectoryCall | None]()
    for trajectory in trajectories:
        for index, (context, sampled, _) in enumerate(trajectory.rows()):
            rows.append([*context, *sampled])
            contexts.append(len(context))
            calls.append(None if trajectory.is_flat(trajectory.calls[index]) else TrajectoryCall(trajectory, index))
    return pack_calls(rows, contexts, calls)


def packed_logps(model: Any, packed: PackedCalls) -> Tensor:
    """log p of each position's label, (N,)."""
    outputs = model(
        input_ids=packed.input_ids[None],
        position_ids=packed.position_ids[None],
        shift_labels=packed.shift_labels[None],
        tree=plan_attention(packed),
        use_cache=False,
        **thread_vectors.arguments(model, packed.threads, packed.input_ids[None]),
    )
    labels = packed.shift_labels.clamp_min(0)
    return outputs.logits[0].log_softmax(-1).gather(1, labels[:, None])[:, 0]


def published_logps(model: Any, trajectory: Trajectory, preset: str, tokens: Tokens) -> list[Tensor]:
    """log p of what each call sampled, (tokens,), as the public trainer `preset` computes it; empty where it does not
    score the call."""
    scored = scored_calls(trajectory, preset, tokens)
    calls = [TrajectoryCall(trajectory, index) for index, whether in enumerate(scored) if whether]
    if not calls:
        return [torch.zeros(0)] * len(scored)
    packed = pack_published(calls, preset, tokens)
    logps, where = packed_logps(model, packed), iter(packed.where)
    return [logps[next(where)] if whether else logps[:0] for whether in scored]


def separate_logps(model: Any, trajectory: Trajectory, index: int) -> Tensor:
    """The same of one call, by one dense forward that shares nothing with any other."""
    ids, positions, mask, threads, places = dense_view(trajectory, index)
    logits = model(
        input_ids=ids[None],
        position_ids=positions[None],
        attention_mask=mask[None, None],
        use_cache=False,
        **thread_vectors.arguments(model, threads, ids[None]),
    ).logits[0]
    sampled = torch.tensor(trajectory.segments[trajectory.calls[index].sampled].ids)
    return logits[places].log_softmax(-1).gather(1, sampled[:, None])[:, 0]


def dense_view(trajectory: Trajectory, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """ids, positions, mask and threads (0 without vectors) of all that a call's tokens see, and where those it sampled
    are predicted; by the definition of `Trajectory.attention`, a token at a time, and shared with nothing the trainer
    uses."""
    call, segments = trajectory.calls[index], trajectory.segments
    flat, whole = trajectory.is_flat(call), (*call.context, call.sampled)

    @cache
    def above(s: int) -> frozenset[int]:
        return frozenset(segments[s].parents).union(*map(above, segments[s].parents))

    siblings = [] if flat or trajectory.attention != "synchronous" else lockstep(trajectory, call.sampled)
    order = [*whole, *(s for s in siblings if s not in whole)]
    text = whole if flat else [s for s in whole if siblings and s not in siblings]  # what is read as flat ids
    tokens = [(s, k) for s in order for k in range(len(segments[s].ids))]
    place = {token: at for at, token in enumerate(tokens)}

    @cache
    def start(s: int) -> int:
        if s in text:
            return sum(len(segments[p].ids) for p in text[: text.index(s)])
        begin = max((start(p) + len(segments[p].ids) for p in segments[s].parents), default=0)
        thread = segments[s].thread
        enters = bool(thread) and all(segments[p].thread != thread for p in segments[s].parents)
        return begin + (thread[-1] - 1) * trajectory.stride if enters else begin

    def sees(a: tuple[int, int], b: tuple[int, int]) -> bool:
        if a[0] == b[0]:
            return b[1] <= a[1]
        if b[0] in text:
            return a[0] not in text or text.index(b[0]) < text.index(a[0])
        lock = a[0] in siblings and segments[a[0]].origin == "sampled" and b[0] in siblings
        return b[0] in above(a[0]) or (lock and (segments[b[0]].origin == "forced" or b[1] < a[1]))

    mask = torch.tensor([[sees(a, b) for b in tokens] for a in tokens])
    positions = torch.tensor([start(s) + k for s, k in tokens])
    last = [s for s in call.context if segments[s].ids][-1]
    count = len(segments[call.sampled].ids)
    at = [place[last, len(segments[last].ids) - 1], *(place[call.sampled, k] for k in range(count - 1))]
    whose = [(segments[s].thread or (0,))[-1] if trajectory.thread_vectors else 0 for s, _ in tokens]
    return torch.tensor(trajectory.ids(tuple(order))), positions, mask, torch.tensor(whose), at[:count]


def lockstep(trajectory: Trajectory, sampled: int) -> list[int]:
    """Headers and sampled segments of all threads of the block that `sampled` is in."""
    block = trajectory.segments[sampled].thread[:-1]
    own = [(s, each) for s, each in enumerate(trajectory.segments) if each.thread and each.thread[:-1] == block]
    written = {each.thread: s for s, each in own if each.origin == "sampled"}
    return [s for s, each in own if s <= written[each.thread]]


def gradient(model: Any, loss: Tensor, *, keep: bool = False) -> Tensor:
    """Of all parameters as one vector; `keep` the graph for another one."""
    model.zero_grad()
    loss.backward(retain_graph=keep)
    return torch.cat([p.grad.flatten() for p in model.parameters()]).clone()


def compare(model: Any, trajectories: Sequence[Trajectory]) -> tuple[float, float, float]:
    """(dlogp, grad, forced) of trajectories that `model` is said to have sampled.

    dlogp: max |log p of the sampler - log p of the packed forward|, nats. grad: max error of the packed gradient of a
    randomly weighted sum of log-probs, relative to the largest entry of that of one dense forward per call. forced: the
    largest entry of the gradient of every packed label that no call sampled: 0.0 where there is none. Raises
    ValueError where a label is another token than was sampled.
    """
    calls = [(t, index) for t in trajectories for index in range(len(t.calls))]
    weights = torch.randn(len(calls), generator=torch.Generator().manual_seed(0)).tolist()
    packed = pack_all(trajectories)
    logps = packed_logps(model, packed)
    weighted = [weight * logps[at].sum() for weight, at in zip(weights, packed.where, strict=True)]
    trained = torch.cat(packed.where)
    sampled = torch.tensor([x for t, index in calls for x in t.segments[t.calls[index].sampled].ids])
    if not torch.equal(packed.shift_labels[trained], sampled):
        raise ValueError("a packed label is not the token that was sampled there")
    others = packed.shift_labels >= 0
    others[trained] = False
    forced = gradient(model, logps[others].sum(), keep=True).abs().max().item() if others.any() else 0.0
    ours = gradient(model, torch.stack(weighted).sum())
    told = torch.tensor([x for t, index in calls for x in t.segments[t.calls[index].sampled].logprobs or ()])
    dlogp = (logps.detach()[trained] - told).abs().max().item()
    weighted = [
        weight * separate_logps(model, trajectory, index).sum()
        for weight, (trajectory, index) in zip(weights, calls, strict=True)
    ]
    reference = gradient(model, torch.stack(weighted).sum())
    return dlogp, ((ours - reference).abs().max() / reference.abs().max()).item(), forced
