"""Where the torch engine keeps keys and values: finished tokens in a store, calls in flight in slabs of rows."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from rollout.view import View

SMALLEST_SLAB = 64
"""Longest row of the smallest slab; the next ones take rows twice as long each."""
_MEMO_TOKENS = 1 << 20
"""Tokens whose states are remembered by piece; about 60 MB."""

State = bytes
"""Names one token's keys and values: its id, its position, its thread's number, and all that it sees."""


@dataclass(frozen=True)
class Shape:
    """What one token's keys and values are made of."""

    layers: int
    heads: int
    group: int
    """Query heads that share a head of keys and values."""
    dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        return 2 * self.layers * self.heads * self.dim * self.dtype.itemsize

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """The array on the device."""
        return torch.as_tensor(array, device=self.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Tokens that were computed together: states, and keys and values (layers, 2, heads, tokens, dim)."""

    states: tuple[State, ...]
    kv: Tensor

    @property
    def bytes(self) -> int:
        return self.kv.numel() * self.kv.element_size()


class Store:
    """Keys and values of single tokens, by what they depend on; the runs that were used longest ago go first.

    It does not matter how a context was cut into pieces, nor which call computed a token or sampled it.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._runs: OrderedDict[int, _Run] = OrderedDict()
        self._at: dict[State, tuple[_Run, int]] = {}
        self._memo: dict[tuple[State, tuple[int, ...]], tuple[State, ...]] = {}
        self._memo_tokens = 0

    def clear(self) -> None:
        """Forgets everything: other weights give other keys and values."""
        self.__init__()

    def states(self, view: View) -> tuple[list[State], State]:
        """The state of every token of a view, and the one from which its sampled tokens go on (see `follow`)."""
        states: list[State] = []
        begins: list[State] = []
        ends: list[State] = []
        for index, (piece, seen, start) in enumerate(zip(view.pieces, view.sees, view.starts, strict=True)):
            begin = _begin(view, begins, ends, seen, start, index)
            own = self.follow(begin, piece)
            states += own
            begins.append(begin)
            ends.append(own[-1] if own else begin)
        return states, _begin(view, begins, ends, tuple(range(len(ends))), view.end, -1)

    def follow(self, begin: State, ids: tuple[int, ...]) -> tuple[State, ...]:
        """The states of tokens that follow a state, each the next position and seeing one token more."""
        known = self._memo.get((begin, ids))
        if known is None:
            known, state = list[State](), begin
            for token in ids:
                state = blake2b(state + token.to_bytes(8, "little"), digest_size=16).digest()
                known.append(state)
            if self._memo_tokens > _MEMO_TOKENS:
                self._memo, self._memo_tokens = {}, 0
            known = self._memo[begin, ids] = tuple(known)
            self._memo_tokens += len(ids)
        return known

    def missing(self, states: Sequence[State]) -> list[int]:
        """Which of these are not held."""
        return [index for index, state in enumerate(states) if state not in self._at]

    def load(self, states: Sequence[State], into: Sequence[Tensor]) -> None:
        """Copies what is held of these states to `into`: of each layer (2, heads, at least as many tokens, dim)."""
        index, count = 0, len(states)
        while index < count:
            if (found := self._at.get(states[index])) is None:
                index += 1
                continue
            run, at = found
            end, last = index + 1, index + len(run.states) - at
            while end < min(count, last) and run.states[at + end - index] == states[end]:
                end += 1
            for layer, kv in zip(into, run.kv, strict=True):
                layer[:, :, index:end] = kv[:, :, at : at + end - index]
            self._runs.move_to_end(id(run))
            index = end

    def keep(self, states: Sequence[State], kv: Tensor) -> None:
        """Takes keys and values (layers, 2, heads, tokens, dim) that nobody else writes to, unless all are held."""
        if not self.missing(states):
            return
        run = _Run(tuple(states), kv)
        self._runs[id(run)] = run
        self.bytes += run.bytes
        for at, state in enumerate(run.states):
            self._at.setdefault(state, (run, at))

    def evict(self, limit: int) -> None:
        """Drops runs until no more than `limit` bytes are held."""
        while self._runs and self.bytes > limit:
            _, run = self._runs.popitem(last=False)
            self.bytes -= run.bytes
            for state in run.states:
                if (held := self._at.get(state)) and held[0] is run:
                    del self._at[state]


def _begin(view: View, begins: list[State], ends: list[State], seen: tuple[int, ...], start: int, index: int) -> State:
    """The state from which a piece goes on: that of the piece it continues, or one that names all it sees: a piece's
    end alone would also name the pieces that it continues, which another view need not show. `index` is the piece's in
    `view.threads`: tokens of another thread than the one they continue go on from a state of their own."""
    own, before = view.threads[index] if view.threads else 0, 0
    last = seen[-1] if seen else -1
    if seen and view.sees[last] == seen[:-1] and view.starts[last] + len(view.pieces[last]) == start:
        state, before = ends[last], view.threads[last] if view.threads else 0
    else:
        names = [begins[index] + ends[index] for index in seen if view.pieces[index]]
        state = blake2b(b"".join((start.to_bytes(8, "little"), *names)), digest_size=16, person=b"piece").digest()
    if own == before:
        return state
    return blake2b(state + own.to_bytes(8, "little"), digest_size=16, person=b"thread").digest()


class Owner(Protocol):
    """Who has a row."""

    slab: "Slab"
    row: int
    length: int
    """Slots of the row that hold keys and values."""


@dataclass(eq=False)
class Slab:
    """Rows of similar length, the first `len(owners)` of them in use, so that attention reads them where they lie.

    kv: of each layer (2, rows, heads, width, dim). The width follows the longest row closely: on a CPU, gaps between
    rows cost as much as reading does. bias (rows, capacity) is 0 at slots in use and -inf elsewhere. For the next
    decoding step: last_id, length (slots in use), shift (position minus slot) and thread (number), one each per row.
    """

    shape: Shape
    capacity: int
    owners: list[Owner] = field(default_factory=list[Owner])

    def __post_init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        shape = self.shape
        size = (2, 0, shape.heads, 0, shape.dim)
        self.kv = [torch.empty(size, dtype=shape.dtype, device=shape.device) for _ in range(shape.layers)]
        self.bias = torch.empty(0, self.capacity, dtype=shape.dtype, device=shape.device)
        self.last_id, self.length, self.shift = torch.zeros(3, 0, dtype=torch.int64, device=shape.device).unbind()
        self.thread = torch.zeros_like(self.shift)

    @property
    def bytes(self) -> int:
        return sum(kv.numel() * kv.element_size() for kv in self.kv)

    def fit(self, rows: int, tokens: int) -> None:
        """Makes room for so many rows and so many tokens in each."""
        _, old_rows, heads, old_width, dim = self.kv[0].shape
        if rows > old_rows:
            rows = max(rows, old_rows * 5 // 4)
            fresh = (rows - old_rows,)
            self.bias = torch.cat((self.bias, self.bias.new_full((*fresh, self.capacity), -torch.inf)))
            meta = (self.last_id, self.length, self.shift)
            self.last_id, self.length, self.shift = (torch.cat((x, x.new_zeros(fresh))) for x in meta)
            self.thread = torch.cat((self.thread, self.thread.new_zeros(fresh)))
        elif tokens <= old_width:
            return
        step = 16 << max(0, tokens.bit_length() - 8)
        rows, width = max(rows, old_rows), max(old_width, -(-tokens // step) * step)
        used = len(self.owners)
        for layer, old in enumerate(self.kv):  # zeros, because a hidden NaN would still be one
            self.kv[layer] = new = old.new_empty(2, rows, heads, width, dim)
            new[:, used:], new[:, :used, :, old_width:] = 0, 0
            new[:, :used, :, :old_width] = old[:, :used]

    def open(self, owner: Owner, tokens: int) -> None:
        """Gives the owner the next row, with room for so many tokens; it shows none yet."""
        row = self._next_row(owner, tokens)
        owner.slab, owner.row, owner.length = self, row, 0

    def _next_row(self, owner: Owner, tokens: int) -> int:
        row = len(self.owners)
        self.fit(row + 1, tokens)
        self.owners.append(owner)
        self.bias[row] = -torch.inf
        return row

    def ready(self, owner: Owner, length: int, position: int, thread: int = 0) -> None:
        """The row holds `length` tokens; the next one, whose position this is, may see them all. It and those after it
        are of the thread of this number."""
        row, owner.length = owner.row, length
        self.bias[row, :length] = 0
        self.length[row] = length
        self.shift[row] = position - length
        self.thread[row] = thread

    def of(self, owner: Owner) -> list[Tensor]:
        """The owner's keys and values: of each layer (2, heads, width, dim)."""
        return [kv[:, owner.row] for kv in self.kv]

    def copy(self, owner: Owner, slots: slice | list[int]) -> Tensor:
        """The owner's keys and values in these slots (layers, 2, heads, slots, dim)."""
        return torch.stack([kv[:, owner.row, :, slots] for kv in self.kv])

    def shut(self, owner: Owner) -> None:
        """Takes the row back; the last row moves into its place."""
        row, moved = owner.row, self.owners.pop()
        if moved is not owner:
            self._copy(moved, row)
            moved.row = row
            self.owners[row] = moved
        if not self.owners:
            self._clear()

    def adopt(self, owner: Owner) -> None:
        """Takes an owner over from another slab, with all its row holds."""
        row = self._next_row(owner, owner.length)
        self._copy(owner, row)
        owner.slab.shut(owner)
        owner.slab, owner.row = self, row

    def _copy(self, owner: Owner, row: int) -> None:
        old, at, length = owner.slab, owner.row, owner.length
        for kv, source in zip(self.kv, old.kv, strict=True):
            kv[:, row, :, :length] = source[:, at, :, :length]
        self.bias[row] = -torch.inf
        self.bias[row, :length] = old.bias[at, :length]
        self.last_id[row], self.length[row], self.shift[row] = old.last_id[at], old.length[at], old.shift[at]
        self.thread[row] = old.thread[at]


class Rows:
    """The slabs of all calls in flight, by capacity: a row that is full moves to a slab of twice the capacity."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.slabs: dict[int, Slab] = {}

    @staticmethod
    def capacity(tokens: int) -> int:
        """Of the row that a call of so many tokens takes.

        >>> Rows.capacity(10), Rows.capacity(65)
        (64, 128)
        """
        return max(SMALLEST_SLAB, 1 << (tokens - 1).bit_length())

    @property
    def bytes(self) -> int:
        return sum(slab.bytes for slab in self.slabs.values())

    def slab(self, tokens: int) -> Slab:
        """The slab whose rows hold so many tokens."""
        capacity = self.capacity(tokens)
        if capacity not in self.slabs:
            self.slabs[capacity] = Slab(self.shape, capacity)
        return self.slabs[capacity]

    def grow(self) -> None:
        """Makes room for one token more in every row."""
        for slab in sorted(self.slabs.values(), key=lambda slab: -slab.capacity):
            full = [owner for owner in slab.owners if owner.length == slab.capacity]
            if full:
                wider = self.slab(slab.capacity + 1)
                wider.fit(len(wider.owners) + len(full), slab.capacity + 1)
                for owner in full:
                    wider.adopt(owner)
