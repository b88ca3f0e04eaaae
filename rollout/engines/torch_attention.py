"""Attention of the torch engine: one packed row of tokens, each part of which reads the keys of its own slab rows.

Registered with transformers as `attn_implementation="rollout_kv"`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # pyright: ignore[reportUnknownVariableType]
from transformers.masking_utils import sdpa_mask  # pyright: ignore[reportUnknownVariableType]

from rollout.engine import EngineError
from rollout.engines.torch_cache import Shape, Slab
from rollout.view import View

NAME = "rollout_kv"

Ints = NDArray[np.int64]


class Reader(Protocol):
    """What a forward reads; `model(..., reader=...)` gives it to every layer."""

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query (tokens, heads, dim), key and value (tokens, key heads, dim), to (tokens, heads, dim)."""
        ...


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive tokens of a forward, in rows `first:last` of a slab: each is written to its slot, then reads its row.

    ids, positions, rows, slots (tokens,). Queries are the tokens themselves, one a row, or `place` (rows, queries)
    names them for each row, padded by repeating one, and `real` (tokens,) says where in the flattened `place` each
    token stands. bias (rows, 1, 1 or queries x group, keys) is added to the scores; key k is slot k of the row.
    threads (tokens,): the number of each token's thread; None: all are the root's.
    """

    slab: Slab
    first: int
    last: int
    ids: Tensor
    positions: Tensor
    rows: Tensor
    slots: Tensor
    bias: Tensor
    place: Tensor | None = None
    real: Tensor | None = None
    threads: Tensor | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """What these tokens take from their rows; shapes as in `Reader`."""
        keys, values = self.write(layer, key, value)
        rows, heads, group, dim = self.last - self.first, keys.shape[1], self.slab.shape.group, keys.shape[3]
        if self.place is None:  # heads that share keys are further queries of the same row
            grouped = query.reshape(rows, heads, group, dim)
            few = _products if _has_products(self.slab.shape) else sdpa
            return few(grouped, keys, values, self.bias, scale).reshape(query.shape)
        grouped = query[self.place].view(rows, -1, heads, group, dim).transpose(1, 2).flatten(2, 3)
        out = sdpa(grouped, keys, values, self.bias, scale)
        out = out.view(rows, heads, -1, group, dim).transpose(1, 2).reshape(-1, heads * group, dim)
        return out if self.real is None else out[self.real]

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Puts keys and values into their slots; all that these rows hold, each (rows, key heads, keys, dim)."""
        keys, values = self.slab.kv[layer]
        keys[self.rows, :, self.slots] = key
        values[self.rows, :, self.slots] = value
        rows, length = slice(self.first, self.last), self.bias.shape[-1]
        return keys[rows, :, :length], values[rows, :, :length]


def sdpa(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float | None) -> Tensor:
    """query (rows, heads, queries, dim); keys, values (rows, heads, keys, dim); bias (rows, 1, 1 or queries, keys)."""
    return scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scale)


def _has_products(shape: Shape) -> bool:
    return shape.device.type == "cpu" and shape.dtype == torch.float32


def _products(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float | None) -> Tensor:
    """The same. On a CPU it is twice as fast for one query a row, if keys and values have no gaps between rows."""
    query = query.flatten(0, 1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.bmm(query, keys.flatten(0, 1).transpose(1, 2)).view(
        *bias.shape[:1], -1, *query.shape[1:2], bias.shape[-1]
    )
    weights = scores.add_(bias).softmax(-1).flatten(0, 1)
    return torch.bmm(weights, values.flatten(0, 1))


@dataclass(frozen=True, eq=False)
class Batch:
    """The parts of one forward, in the order of its tokens."""

    parts: Sequence[Part]

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Each part's tokens read their own rows; shapes as in `Reader`."""
        if len(self.parts) == 1:
            return self.parts[0].attend(module.layer_idx, query, key, value, scale)
        outs, start = list[Tensor](), 0
        for part in self.parts:
            own = slice(start, start + len(part.ids))
            outs.append(part.attend(module.layer_idx, query[own], key[own], value[own], scale))
            start = own.stop
        return torch.cat(outs)


def decoding(slab: Slab, rows: int) -> Part:
    """The last sampled token of each of the first `rows` owners, which goes into the next slot and sees all of it."""
    at, slots = torch.arange(rows, device=slab.shape.device), slab.length[:rows].clone()
    slab.bias[at, slots] = 0
    slab.length[:rows] += 1
    for owner in slab.owners[:rows]:
        owner.length += 1
    longest = max(owner.length for owner in slab.owners[:rows])
    slab.fit(0, longest)
    positions = slots + slab.shift[:rows]
    width = slab.kv[0].shape[3] if _has_products(slab.shape) else longest
    bias = slab.bias[:rows, None, None, :width]
    return Part(slab, 0, rows, slab.last_id[:rows], positions, at, slots, bias, threads=slab.thread[:rows])


class Context:
    """The tokens of a view in a row, token t in slot t: their ids, positions, threads, and which slots each sees."""

    def __init__(self, view: View) -> None:
        self.ids: Ints = np.array(view.ids, dtype=np.int64)
        lengths = [len(piece) for piece in view.pieces]
        runs = [np.arange(start, start + length) for start, length in zip(view.starts, lengths, strict=True)]
        self.positions: Ints = np.concatenate(runs).astype(np.int64)
        self.threads: Ints = np.zeros_like(self.ids)
        if view.threads:
            self.threads = np.repeat(np.array(view.threads[:-1], dtype=np.int64), lengths)
        self._sees: NDArray[np.bool_] | None = None
        if not view.is_causal:
            self._sees = np.zeros((len(lengths), len(lengths)), dtype=np.bool_)
            for index, seen in enumerate(view.sees):
                self._sees[index, list(seen)] = True
            self._piece: Ints = np.repeat(np.arange(len(lengths)), lengths)

    def bias(self, slots: Ints) -> NDArray[np.float32]:
        """(queries, all slots): 0 where the token in the slot asked for sees the other, -inf elsewhere."""
        before = np.arange(len(self.ids)) <= slots[:, None]
        if self._sees is not None:
            own = self._piece[slots]
            before = (before & (own[:, None] == self._piece)) | self._sees[own][:, self._piece]
        return np.where(before, np.float32(0), np.float32(-np.inf))


def prefilling(slab: Slab, first: int, asked: Sequence[tuple[Context, Ints]]) -> Part:
    """Tokens of contexts in consecutive rows from `first` on: of each context those in the given (ascending) slots."""
    counts = [len(slots) for _, slots in asked]
    queries, keys = max(counts), max(len(context.ids) for context, _ in asked)
    starts = np.cumsum([0, *counts[:-1]])
    step = np.arange(queries)
    bias = np.full((len(asked), queries, keys), -np.inf, dtype=np.float32)
    for row, (context, slots) in enumerate(asked):
        bias[row, : len(slots), : len(context.ids)] = context.bias(slots)
        bias[row, len(slots) :] = bias[row, len(slots) - 1]
    place = starts[:, None] + np.minimum(step, np.array(counts)[:, None] - 1)
    real = np.flatnonzero(step < np.array(counts)[:, None])
    on_device, group = slab.shape.tensor, slab.shape.group
    return Part(
        slab,
        first,
        first + len(asked),
        ids=on_device(np.concatenate([context.ids[slots] for context, slots in asked])),
        positions=on_device(np.concatenate([context.positions[slots] for context, slots in asked])),
        rows=on_device(np.repeat(np.arange(first, first + len(asked)), counts)),
        slots=on_device(np.concatenate([slots for _, slots in asked])),
        bias=on_device(bias).to(slab.shape.dtype).repeat_interleave(group, 1)[:, None],
        place=on_device(place),
        real=None if len(real) == place.size else on_device(real),
        threads=on_device(np.concatenate([context.threads[slots] for context, slots in asked])),
    )


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    reader: Reader | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row (1, heads, tokens, dim) through `reader`; without one, exactly what "sdpa" does."""
    if reader is None:
        return cast(Any, sdpa_attention_forward)(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    odd = [name for name in ("sliding_window", "s_aux", "softcap", "position_bias") if kwargs.get(name) is not None]
    if odd:
        raise EngineError(f"the torch engine cannot do attention with {odd[0]}: use a plain dense causal model")
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    return reader.attend(module, query, key, value, scaling)[None], None


cast(Any, AttentionInterface).register(NAME, _attention)
cast(Any, AttentionMaskInterface).register(NAME, sdpa_mask)
