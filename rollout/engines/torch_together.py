"""Threads that see each other while they are sampled: GroupThink's shared positions, Hogwild!'s view per reader."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from rollout.engine import Completion, EngineError
from rollout.engines.torch_attention import Context, Ints, Part, sdpa
from rollout.engines.torch_cache import Shape, Slab, State, Store
from rollout.engines.torch_model import first_key
from rollout.engines.torch_sampling import Stream
from rollout.view import View

Mode = Literal["group_think", "hogwild"]


@dataclass(frozen=True, eq=False)
class TurnedPart(Part):
    """One query per reader of the same row; each reader finds the keys turned on by so many positions of its own.

    cos, sin (readers, 1, keys, dim); bias (readers, 1, 1, keys).
    """

    cos: Tensor = field(kw_only=True)
    sin: Tensor = field(kw_only=True)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """What each reader takes from the row; shapes as in `Reader`."""
        keys, values = (x[0, :, : self.bias.shape[-1]] for x in self.write(layer, key, value))
        turned = turn(keys[None].float(), self.cos, self.sin).to(query.dtype)
        grouped = query.view(len(query), keys.shape[0], -1, query.shape[-1])
        values = values.expand(len(query), *values.shape)
        return sdpa(grouped, turned, values, self.bias, scale).reshape(query.shape)


def turn(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates keys (..., dim) by angles, the two halves of dim against each other."""
    first, second = keys.chunk(2, -1)
    return keys * cos + torch.cat((-second, first), -1) * sin


@torch.inference_mode()
def frequencies(model: PreTrainedModel, shape: Shape) -> Tensor:
    """Angle per position of each half dim (dim / 2,). Raises EngineError when keys do not turn by these alone."""
    found = [module for module in model.modules() if hasattr(module, "inv_freq")]
    if found:
        inverse = cast(Tensor, cast(Any, found[0]).inv_freq).float()
        angles = torch.cat((inverse, inverse)) * 5
        if len(angles) == shape.dim:
            at_2, at_7 = first_key(model, 2).float(), first_key(model, 7).float()
            off = (turn(at_2, angles.cos(), angles.sin()) - at_7).abs().max()
            if off < 0.02 * at_7.abs().max():  # the rounding of bfloat16
                return inverse
    raise EngineError(f"{type(model).__name__} has no plain rotary positions: hogwild cannot turn its keys")


@dataclass(eq=False)
class Session:
    """N threads after one view, in one row of a slab of their own: the view, the headers, then step by step a token of
    each thread that still samples or has just ended. A query sees all earlier steps and itself.

    `angles` (dim / 2,) are the model's frequencies in mode hogwild, and None in mode group_think.
    """

    view: View
    headers: Sequence[tuple[int, ...]]
    streams: Sequence[Stream]
    stride: int
    angles: Tensor | None
    future: "asyncio.Future[list[Completion]]"
    shape: Shape
    states: list[State] = field(init=False)
    slab: Slab = field(init=False)
    row: int = -1
    length: int = 0

    def __post_init__(self) -> None:
        view, count = self.view, len(self.headers)
        first, lengths = len(view.ids), [len(header) for header in self.headers]
        before = tuple(range(len(view.pieces)))
        starts = [view.end + (n * self.stride if self.angles is None else 0) for n in range(count)]
        self.whole = View((*view.pieces, *self.headers), (*view.sees, *[before] * count), (*view.starts, *starts))
        self.context = Context(self.whole)
        self.size, self.steps = count, 0
        self._starts, self._headers = np.array(starts), np.array(lengths)
        self.ends: Ints = first - 1 + np.cumsum(lengths)
        """The slots of the headers' last tokens, which predict the first sampled ones."""
        # Of every slot: whose it is (-1: the view's), which of its thread's tokens it holds, and its own position.
        self.thread: Ints = np.concatenate([np.full(first, -1), np.repeat(np.arange(count), lengths)])
        self.index: Ints = np.concatenate([np.zeros(first, np.int64), *(np.arange(length) for length in lengths)])
        self.position: Ints = self.context.positions
        self.slots = first + sum(lengths) + sum(stream.sampling.max_tokens for stream in self.streams)
        self.bytes = self.slots * self.shape.token_bytes

    @property
    def ends_at(self) -> int:
        """The highest position that a sampled token may come to have, plus one."""
        lengths = self._headers + [stream.sampling.max_tokens for stream in self.streams]
        return int(self.view.end + lengths.sum() if self.angles is not None else (self._starts + lengths).max())

    def open(self, store: Store) -> None:
        """Takes a row, and what the store holds of the view and the headers."""
        slab = Slab(self.shape, self.slots)
        slab.open(self, len(self.states))
        store.load(self.states, slab.of(self))
        self.length = len(self.states)

    def step(self) -> tuple[Part, list[Stream], Ints]:
        """The next tokens to be read: of each thread the one sampled last, if it is new; the streams that sample on,
        and after which of these tokens."""
        threads = [n for n, stream in enumerate(self.streams) if len(stream.ids) > self.steps]
        first, count = self.length, len(threads)
        now = np.array(threads, dtype=np.int64)
        blocks = np.bincount(self.thread[self.thread >= 0], minlength=self.size)
        own = self._headers[now] + self.steps
        self.steps += 1
        self.length += count
        offsets = self._offsets(now, blocks)
        self.thread, self.index = np.append(self.thread, now), np.append(self.index, own)
        at = own + (self._starts[now] if offsets is None else offsets[np.arange(count), now])
        self.position = np.append(self.position, at)
        bias = np.zeros((count, self.length), np.float32)
        bias[:, first:] = np.where(np.eye(count, dtype=np.bool_), 0, -np.inf)
        self.slab.fit(1, self.length)
        part = self._part(np.array([self.streams[n].ids[-1] for n in threads]), at, bias, offsets)
        going = np.array([i for i, n in enumerate(threads) if self.streams[n].finish is None], dtype=np.int64)
        return part, [self.streams[threads[i]] for i in going], going

    def _offsets(self, readers: Ints, blocks: Ints) -> Ints | None:
        """Where each thread's first token stands for each reader (readers, threads): the others in order, its own last.

        blocks (threads,): their tokens so far, this step's left out.
        """
        if self.angles is None:
            return None
        offsets = np.zeros((len(readers), self.size), np.int64)
        for row, reader in enumerate(readers):
            order = [n for n in range(self.size) if n != reader] + [int(reader)]
            offsets[row, order] = self.view.end + np.cumsum([0, *blocks[order[:-1]]])
        return offsets

    def _part(self, ids: Ints, positions: Ints, bias: NDArray[np.float32], offsets: Ints | None) -> Part:
        shape, count = self.shape, len(ids)
        slots = np.arange(self.length - count, self.length)
        ids_, at, rows, places = (shape.tensor(x) for x in (ids, positions, np.zeros(count, np.int64), slots))
        shown = shape.tensor(bias).to(shape.dtype)
        if self.angles is None or offsets is None:
            wide = shown.repeat_interleave(shape.group, 0)[None, None]
            place = shape.tensor(np.arange(count)[None])
            return Part(self.slab, 0, 1, ids_, at, rows, places, wide, place)
        mine = self.thread >= 0
        wished = np.where(mine, offsets[:, self.thread] + self.index, self.position)
        angle = shape.tensor((wished - self.position)[:, None, :, None]) * torch.cat((self.angles, self.angles))
        cos, sin = angle.cos(), angle.sin()
        return TurnedPart(self.slab, 0, 1, ids_, at, rows, places, shown[:, None, None], cos=cos, sin=sin)

    @property
    def completions(self) -> list[Completion]:
        """Of the threads, in order, once all have ended."""
        return [stream.completion for stream in self.streams]
