"""Exact attention over a packed row, registered with transformers as `attn_implementation="tree"`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from apr_train.chains import Chain, chain_table, trie_chains
from apr_train.dag_packing import PackedCalls
from apr_train.packing import PackedTrie, Segments
from rollout.errors import UserError

SMALL_AREA = 1 << 14
"""Largest queries x keys of a chain that joins a padded batch; a larger one is worth kernel calls of its own."""
PADDING = 1.3
"""Largest ratio of padded to true queries x keys in a batch of small chains."""

Place = tuple[tuple[int, int], ...] | Tensor
"""Which packed positions: spans (one sequence of them all), or int64 indices (B, L)."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class TreeAttentionError(UserError, ValueError):
    """A packed row cannot be attended over as asked; the message names what to change."""


@dataclass(frozen=True, eq=False)
class Part:
    """One kernel call: `query` attends to `key` causally, or through `bias` (B, 1, Lq, Lk; 0 or -inf), or freely.

    `merge`: the part before holds other keys of the same queries. `real_BQ` is False for a padded query: it repeats the
    last one of its chain, mask included, so that its probabilities stay finite. The bias hides padded keys.
    """

    query: Place
    key: Place
    causal: bool = False
    merge: bool = False
    bias_B1QK: Tensor | None = None
    real_BQ: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TreePlan:
    """How to attend over one packed row of `tokens` positions; made once, used by all layers, forward and backward.

    On the CPU `parts` cover each (position, ancestor) pair once; on CUDA `block_mask` does.
    """

    tokens: int
    parts: tuple[Part, ...] = ()
    block_mask: BlockMask | None = None


def plan_attention(
    packed: PackedTrie | PackedCalls, device: torch.device | str = "cpu", small_area: int = SMALL_AREA
) -> TreePlan:
    """Plans attention over a packed row for a model on `device`, which must be the one the model runs on.

    Chains of more than `small_area` query-key pairs get kernel calls of their own, smaller ones go into padded batches.

    Example: calls 5 6 7 8 and 5 6 9 share position 0; the second one's own chain is position 3:

    >>> from apr_train.packing import pack
    >>> plan = plan_attention(pack([[5, 6, 7, 8], [5, 6, 9]]), small_area=0)
    >>> [(part.query, part.key, part.causal) for part in plan.parts]
    [(((0, 3),), ((0, 3),), True), (((3, 4),), ((3, 4),), True), (((3, 4),), ((0, 1),), False)]
    """
    tokens, device = packed.unique_tokens, torch.device(device)
    trie = packed if isinstance(packed, PackedTrie) else packed.trie
    if trie is not None and device.type == "cuda":
        return TreePlan(tokens, block_mask=_block_mask(trie.segments, tokens, device))
    chains = packed.chains if isinstance(packed, PackedCalls) else trie_chains(packed.segments)
    if device.type == "cuda":
        return TreePlan(tokens, block_mask=_chain_mask(chains, tokens, device))
    alone = [chain for chain in chains if chain.area > small_area or chain.steps is not None]
    large = [part for chain in alone for part in _parts(chain)]
    small = [chain for chain in chains if chain.area <= small_area and chain.steps is None]
    return TreePlan(tokens, (*large, *_batches(small)))


def _parts(chain: Chain) -> Iterator[Part]:
    own = ((chain.start, chain.end),)
    if chain.steps is None:
        yield Part(own, own, causal=True)
    else:
        step_Q = torch.tensor(chain.steps)
        seen_QK = (step_Q < step_Q[:, None]) | torch.eye(len(step_Q), dtype=torch.bool)
        yield Part(own, own, bias_B1QK=torch.zeros(1, 1, *seen_QK.shape).masked_fill_(~seen_QK, -torch.inf))
    if chain.prefix:
        yield Part(own, chain.prefix, merge=True)


def _batches(chains: list[Chain]) -> Iterator[Part]:
    """Groups small chains of similar shape, so that padding multiplies no batch's work by more than PADDING."""
    group: list[Chain] = []
    area = queries = keys = 0
    for chain in sorted(chains, key=lambda c: (round(4 * math.log2(c.queries)), c.keys)):
        padded = (len(group) + 1) * max(queries, chain.queries) * max(keys, chain.keys)
        if group and padded > PADDING * (area + chain.area):
            yield _batch(group)
            group, area, queries, keys = [], 0, 0, 0
        group.append(chain)
        area, queries, keys = area + chain.area, max(queries, chain.queries), max(keys, chain.keys)
    if group:
        yield _batch(group)


def _batch(chains: list[Chain]) -> Part:
    """Pads the chains to one shape; the keys of each are its whole path, gathered."""
    start_B, queries_B, keys_B = np.array([(chain.start, chain.queries, chain.keys) for chain in chains]).T
    step_Q = np.arange(queries_B.max())
    own_BQ = np.minimum(step_Q, queries_B[:, None] - 1)
    key_BK = np.zeros((len(chains), keys_B.max()), dtype=np.int64)
    for row, chain in zip(key_BK, chains, strict=True):
        row[: chain.keys] = np.concatenate([np.arange(*span) for span in (*chain.prefix, (chain.start, chain.end))])
    last_BQ = own_BQ + (keys_B - queries_B)[:, None]
    hidden_BQK = torch.from_numpy(np.arange(keys_B.max()) > last_BQ[:, :, None])
    return Part(
        query=torch.from_numpy(start_B[:, None] + own_BQ),
        key=torch.from_numpy(key_BK),
        bias_B1QK=torch.zeros(hidden_BQK.shape).masked_fill_(hidden_BQK, -torch.inf)[:, None],
        real_BQ=torch.from_numpy(step_Q < queries_B[:, None]),
    )


def _block_mask(segments: Segments, tokens: int, device: torch.device) -> BlockMask:
    """For flex_attention: j is i or an ancestor of i exactly when j <= i < exit of j.

    Tested on the CPU only, where flex_attention has no backward: not yet run on a GPU.
    """
    exit_N = torch.from_numpy(np.repeat(segments.exit_S, segments.end_S - segments.start_S)).to(device)

    def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i < exit_N[j])

    return create_block_mask(sees, None, None, tokens, tokens, device=str(device), _compile=device.type == "cuda")


def _chain_mask(chains: Sequence[Chain], tokens: int, device: torch.device) -> BlockMask:
    """For flex_attention, of chains that need not form a trie; tested as `_block_mask` is."""
    table = chain_table(chains, tokens)
    arrays = (table.chain_N, table.atom_N, table.step_N, table.seen_CA)
    chain_N, atom_N, step_N, seen_CA = (torch.from_numpy(array).to(device) for array in arrays)

    def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        own = (chain_N[i] == chain_N[j]) & ((i == j) | (step_N[j] < step_N[i]))
        return own | seen_CA[chain_N[i], atom_N[j]]

    return create_block_mask(sees, None, None, tokens, tokens, device=str(device), _compile=device.type == "cuda")


class _TreeAttention(torch.autograd.Function):
    """Flash attention in parts, over q (N, H, D) and k, v (N, heads that divide H, D), to (N, H, D).

    Forward, the parts' outputs merge by their log-sum-exp. Backward, each part gets the *merged* output and
    log-sum-exp: its probabilities are then those of the whole softmax, and the parts' gradients add up to the exact
    one. Only q, k, v, the output and the log-sum-exp are kept in between.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, scale: float | None) -> Tensor:
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
        for part in plan.parts:
            bias = None if part.bias_B1QK is None else part.bias_B1QK.to(q.dtype)
            heads = (_take(x, at).transpose(1, 2) for x, at in ((q, part.query), (k, part.key), (v, part.key)))
            new, new_lse = (x.transpose(1, 2) for x in _flash(*heads, 0.0, part.causal, attn_mask=bias, scale=scale))
            if part.merge:
                new, new_lse = _merge(new, new_lse, _take(out, part.query), _take(lse, part.query))
            _put(out, part, new)
            _put(lse, part, new_lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, lse = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in (q, k, v)]
        for part in ctx.plan.parts:
            bias = None if part.bias_B1QK is None else part.bias_B1QK.to(q.dtype)
            grad_part = _take(grad, part.query)
            if part.real_BQ is not None:
                grad_part = grad_part * part.real_BQ[:, :, None, None]
            places = (part.query, part.key, part.key, part.query, part.query)
            inputs = [grad_part, *(_take(x, at) for x, at in zip((q, k, v, out, lse), places, strict=True))]
            heads = (x.transpose(1, 2) for x in inputs)
            pieces = _flash_backward(*heads, 0.0, part.causal, attn_mask=bias, scale=ctx.scale)
            for total, at, piece in zip(grads, places, pieces, strict=False):
                _add(total, at, piece.transpose(1, 2))
        return (*grads, None, None)


def _take(x: Tensor, at: Place) -> Tensor:
    """Rows of x (N, ...) at a place, as (B, L, ...); a view where the place is one span."""
    if isinstance(at, Tensor):
        return x.index_select(0, at.flatten()).unflatten(0, at.shape)
    pieces = [x[start:end] for start, end in at]
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces))[None]


def _put(x: Tensor, part: Part, value: Tensor) -> None:
    if isinstance(part.query, Tensor):
        assert part.real_BQ is not None
        x[part.query[part.real_BQ]] = value[part.real_BQ]
    else:
        ((start, end),) = part.query
        x[start:end] = value[0]


def _add(x: Tensor, at: Place, value: Tensor) -> None:
    if isinstance(at, Tensor):
        x.index_add_(0, at.flatten(), value.flatten(0, 1))
    else:
        for (start, end), piece in zip(at, value[0].split([end - start for start, end in at]), strict=True):
            x[start:end] += piece


def _merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from that over each: the mean, weighted by their shares of the softmax."""
    total = torch.logaddexp(lse, other_lse)
    weight = (lse - total).exp_()[..., None]
    return torch.lerp(other.float(), out.float(), weight).to(out.dtype), total


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)


@dataclass(frozen=True, eq=False)
class _LazyMask:
    """A dense mask that only a call without a plan builds: the mask function does not see whether there is one."""

    arguments: dict[str, Any]

    @cached_property
    def dense(self) -> Tensor | None:
        return sdpa_mask(**self.arguments)


def tree_mask(**arguments: Any) -> Tensor | _LazyMask | None:
    """The mask of "sdpa", put off where the positions restart, as they do in a packed trie."""
    if arguments.get("attention_mask") is None and not arguments.get("allow_is_causal_skip", True):
        return _LazyMask(arguments)
    return sdpa_mask(**arguments)


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | _LazyMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    tree: TreePlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row under `tree` (from `model(..., tree=plan)`); without one, exactly what "sdpa" does.

    query (1, H, N, D); key, value (1, heads that divide H, N, D); returns (1, N, H, D).

    Raises TreeAttentionError for anything but plain causal attention (dropout, sliding window, sinks, soft cap,
    position bias, a mask of its own), for a row of another length than planned, and for another device's plan.
    """
    if tree is None:
        mask = attention_mask.dense if isinstance(attention_mask, _LazyMask) else attention_mask
        return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, **kwargs)
    _check_is_plain(module, attention_mask, dropout, kwargs)
    _check_fits(query, key, tree)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if tree.block_mask is not None:
        gqa = query.shape[1] != key.shape[1]
        out = _compiled_flex()(query, key, value, block_mask=tree.block_mask, scale=scaling, enable_gqa=gqa)
        return out.transpose(1, 2).contiguous(), None
    rows = (x[0].transpose(0, 1) for x in (query, key, value))
    return _TreeAttention.apply(*rows, tree, scaling)[None], None


def _check_is_plain(module: torch.nn.Module, mask: Any, dropout: float, kwargs: dict[str, Any]) -> None:
    asked = {
        "attention dropout (set attention_dropout=0)": dropout > 0,
        "a sliding window": kwargs.get("sliding_window") is not None,
        "attention sinks": kwargs.get("s_aux") is not None,
        "a soft cap on scores": kwargs.get("softcap") is not None,
        "a position bias": kwargs.get("position_bias") is not None,
        "attention that is not causal": kwargs.get("is_causal", getattr(module, "is_causal", True)) is False,
        "a mask besides its plan (pass no attention_mask)": isinstance(mask, Tensor),
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise TreeAttentionError(f"tree attention cannot do {what}: use a plain dense causal model, or do not pack")


def _check_fits(query: Tensor, key: Tensor, tree: TreePlan) -> None:
    if query.shape[0] != 1 or not query.shape[2] == key.shape[2] == tree.tokens:
        raise TreeAttentionError(
            f"the plan is for 1 row of {tree.tokens} tokens but got {query.shape[0]} of {query.shape[2]} "
            f"with {key.shape[2]} keys: pass the row it was made from, and use_cache=False"
        )
    if (query.device.type == "cuda") != (tree.block_mask is not None):
        raise TreeAttentionError("the plan is for another device: call plan_attention(packed, device=model.device)")


AttentionInterface.register("tree", tree_attention)
AttentionMaskInterface.register("tree", tree_mask)
