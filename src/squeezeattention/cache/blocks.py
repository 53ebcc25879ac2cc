"""A layer's tokens for compiled steps: in blocks of one size, so that what budgets are is data, not shape.

::

    block        0        1        2        3        4          spare
    unit       [ 0      | 0      | 1      | 2      | 2      |        ]
    positions  [ 0 .. 31| 32 . -2| 0 .. -1| 4 .. 35| 36 . -2| -2 ... ]    -1: no token yet, -2: beyond the budget

A graph that was traced for one plan serves every other one: it is told whose each block is, where each unit (one KV
head of one row) begins and how much it may hold. Only the number of blocks changes, and that is no constant of the
graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from ..policies import EvictionPolicy
from .ragged import RaggedStore
from .store import LayerStore, mark_static, ring_slots, storage_bytes, without_graph
from .units import Units

#: Slots of a block. Half of them are empty for each unit, on average.
BLOCK = 32
#: On a GPU each number of blocks is a CUDA graph of its own: numbers are rounded up to this share of a power of two.
_BUCKETS = 8
#: A slot beyond its unit's budget.
_BEYOND = -2
#: Ranks: never evicted; what is evicted before all others, by its age.
_LAST, _FIRST = torch.iinfo(torch.int64).max, -(2**40)


def bucket(blocks: int) -> int:
    """``blocks`` rounded up so that few numbers occur: by an eighth at most."""
    step = max(1, 2 ** (blocks.bit_length() - 1) // _BUCKETS)
    return -(-blocks // step) * step


def takes(policy: EvictionPolicy) -> bool:
    """Whether the token that makes room can be found in blocks: by its position, or by a score that stays."""
    return policy.ring is not None or (policy.recent_tokens(policy.minimum) is not None and not _follows(policy))


def _follows(policy: EvictionPolicy) -> bool:
    return bool(getattr(policy, "follows", False))


class Blocks:
    """Tensors: keys ``[S, D]``, values ``[S, Dv]``, positions ``[S]`` int64, scores ``[S]`` fp32 or ``None``, of
    ``S = C * BLOCK`` slots; U units, numbered ``row * heads + head``.

    They are flat, and looked at block by block only where they are read: written through a view, they would be copied
    at every step by compilers that know a graph's arguments for themselves alone (torch 2.11's).
    """

    def __init__(
        self, store: LayerStore | RaggedStore, budget: int | None, columns: int | None, policy: EvictionPolicy,
        window: int | None,
    ) -> None:  # fmt: skip
        """``store`` is taken over; a rectangle has a ``budget``, and room for ``columns`` tokens is made in it."""
        self.rows, self.heads = store.shape
        self.window = window
        self._was = _Shape(store, columns)
        room = self._was.room
        budgets = list(room) if budget is None else [budget] * len(room)
        keys, values, positions, scores = self._was.flat(store)
        device = keys.device
        blocks = [-(-slots // BLOCK) for slots in room]
        count = max(2, sum(blocks) if device.type == "cpu" else bucket(sum(blocks)))
        owner = [unit for unit, own in enumerate(blocks) for _ in range(own)]
        self.owner = torch.tensor(owner + [0] * (count - len(owner)), device=device)
        """[C] the unit of each block."""
        first = [0, *accumulate(blocks)][:-1]
        self.begin = torch.tensor([BLOCK * block for block in first], device=device)
        """[U] each unit's first slot."""
        most = max(2, *blocks)
        most = most if device.type == "cpu" else 1 << (most - 1).bit_length()
        self.table = torch.tensor(
            [[*range(block, block + own), *[block] * (most - own)] for block, own in zip(first, blocks, strict=True)],
            device=device,
        )
        """[U, M] the blocks of each unit, then its first one again. M is no constant of the graph either."""
        self.budgets = torch.tensor(budgets, device=device)
        """[U] tokens that each may hold."""
        self.rooms = torch.tensor(room, device=device)
        """[U] slots that each has, which are fewer where a text will end before the budget is full."""
        self.numbers = torch.arange(len(room), device=device)
        self.ring = policy.ring if window is None else None
        self.sinks = policy.ring or 0
        """Leading tokens that a search spares."""
        spared = [policy.recent_tokens(one) or 0 for one in budgets] if policy.ring is None else [0] * len(room)
        self.recent = torch.tensor(spared, device=device)
        """[U] newest tokens that a search spares."""
        self._place = self.begin.index_select(0, self._was.unit) + self._was.column
        inside = torch.full((count * BLOCK,), _BEYOND, device=device)
        self.positions = inside.index_copy_(0, self._place, positions)
        self.keys, self.values = (self._spread(flat, count) for flat in (keys, values))
        self.scores = None if scores is None else self._spread(scores, count)
        torch._dynamo.maybe_mark_dynamic(self.table, 1)
        for tensor in (self.keys, self.values, self.positions, self.scores, self.owner):
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
                mark_static(tensor)

    def _spread(self, flat: torch.Tensor, count: int) -> torch.Tensor:
        made = flat.new_zeros(count * BLOCK, *flat.shape[1:])
        return made.index_copy_(0, self._place, flat)

    def by_block(self, held: torch.Tensor) -> torch.Tensor:
        """A view ``[C, BLOCK, ...]`` of one of the tensors."""
        return held.view(self.owner.shape[0], BLOCK, *held.shape[1:])

    # ------------------------------------------------------------------ steps

    def newest(self, positions: torch.Tensor) -> torch.Tensor:
        """``positions`` ``[B or 1, 1]`` of the rows' new tokens, for each block: ``[C, 1]``."""
        return self.of_units(positions).index_select(0, self.owner)[:, None]

    def of_units(self, positions: torch.Tensor) -> torch.Tensor:
        """The same for each unit, ``[U]``."""
        return positions.expand(self.rows, self.heads).reshape(-1)

    def slots(self, positions: torch.Tensor) -> torch.Tensor:
        """Slot of each unit's new token, int64 ``[U]``."""
        if self.ring is not None:
            return self.begin + ring_slots(self.of_units(positions), self.ring, self.budgets)
        held, newest = self.by_block(self.positions), self.newest(positions)
        # Score and age as one number: floats that are not negative are ordered as their bits are.
        rank = (
            held if self.scores is None else torch.add(held, self.by_block(self.scores).view(torch.int32), alpha=2**32)
        )
        spared = (held > newest - self.recent.index_select(0, self.owner)[:, None]) | (held < self.sinks)
        gone = held < 0
        if self.window is not None:
            gone |= held <= newest - self.window
        rank = torch.where(gone, held + _FIRST, rank.masked_fill(spared, _LAST))  # empty slots before all others
        lowest, column = rank.masked_fill(held == _BEYOND, _LAST).min(dim=1)
        block = self.table.gather(1, self.by_unit(lowest).argmin(dim=1, keepdim=True)).squeeze(1)
        return block * BLOCK + column.index_select(0, block)

    def by_unit(self, of_blocks: torch.Tensor) -> torch.Tensor:
        """``[C, ...]`` -> ``[U, M, ...]``, the blocks of each unit, some more than once."""
        return of_blocks.index_select(0, self.table.flatten()).view(*self.table.shape, *of_blocks.shape[1:])

    @property
    def largest(self) -> int:
        """No unit has more slots. Kernels are launched for so many."""
        return self.table.shape[1] * BLOCK

    def insert(
        self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, score: float | torch.Tensor
    ) -> None:
        """Write one token a unit in its place: ``[B, H, 1, D]`` twice, positions ``[B or 1, 1]``, and its score, one
        for all or ``[B, H, 1]``."""
        slots = self.slots(positions)
        for held, new in ((self.keys, keys), (self.values, values)):
            held.index_copy_(0, slots, without_graph(new).reshape(len(self.numbers), -1))
        self.positions.index_copy_(0, slots, self.of_units(positions))
        if self.scores is not None:
            if isinstance(score, torch.Tensor):
                self.scores.index_copy_(0, slots, score.reshape(-1))
            else:
                self.scores.index_fill_(0, slots, score)

    # --------------------------------------------------------------- the rest

    def store(self) -> LayerStore | RaggedStore:
        """A store of these tokens, of the kind that they came from; a copy. Where slots were searched here, tokens lie
        in no ring's order there."""
        flat = (self.keys, self.values, self.positions, self.scores)
        return self._was.store(
            [None if one is None else one.index_select(0, self._place) for one in flat],
            rings=self.ring is not None,
        )

    def set_scores(self, store: LayerStore | RaggedStore) -> None:
        """Those of a store that these tokens have been given as, in place."""
        if self.scores is not None:
            self.scores.index_copy_(0, self._place, store.scores.flatten())  # type: ignore[union-attr]

    def holds(self, columns: int) -> bool:
        """Whether each unit of a rectangle has so many slots, or it is none."""
        return self._was.units is not None or self._was.room[0] >= columns

    def counts(self) -> list[list[int]]:
        """Tokens of each row and KV head."""
        own = (self.by_block(self.positions) >= 0).sum(dim=1)
        found = torch.zeros_like(self.begin).index_add_(0, self.owner, own).view(self.rows, self.heads)
        counts: list[list[int]] = found.tolist()
        return counts

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's key and value in all KV heads, for one sequence."""
        return self.heads * sum(one.shape[1] * one.element_size() for one in (self.keys, self.values))

    def kv_bytes(self) -> int:
        """Bytes of the key and value storages, measured: of blocks that are not full as well."""
        return storage_bytes(self.keys, self.values)

    def index_bytes(self) -> int:
        """Bytes of positions, scores and what else there is beside keys and values, measured."""
        return storage_bytes(
            self.positions,
            self.scores,
            self.owner,
            self.table,
            self.begin,
            self.budgets,
            self.rooms,
            self.recent,
            self.numbers,
            self._place,
        )


class _Shape:
    """How a store's slots lie, so that one like it can be made again."""

    def __init__(self, store: LayerStore | RaggedStore, columns: int | None) -> None:
        self.units: Units | None = None
        self.shape = store.shape
        if isinstance(store, RaggedStore):
            self.units, self.room = store.units, store.units.room
            self.unit, self.column = store.units.of_slot
            # What is known of its runs, without its buffers.
            self._known = (store.recent, store.recent_of_unit, store.ring)
            self._runs = [(run.ring, run.full, run.full_at) for run in store.runs]
            return
        count, device = self.shape[0] * self.shape[1], store.used_positions().device
        width = store.used if columns is None else max(columns, store.used)
        self.room = (width,) * count
        self.unit = torch.arange(count, device=device).repeat_interleave(width)
        self.column = torch.arange(width, device=device).repeat(count)

    def flat(
        self, store: LayerStore | RaggedStore
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """A store's buffers, a slot a row, in this order."""
        if isinstance(store, RaggedStore):
            return store.keys, store.values, store.positions, store.scores
        store.reserve(self.room[0], self.room[0])
        store.used = self.room[0]
        keys, values = store.view()
        positions = store.used_positions().expand(*self.shape, -1).reshape(-1)
        scores = store.used_scores()
        return (
            keys.reshape(-1, keys.shape[-1]), values.reshape(-1, values.shape[-1]), positions,
            None if scores is None else scores.reshape(-1),
        )  # fmt: skip

    def store(self, flat: Sequence[torch.Tensor | None], *, rings: bool) -> LayerStore | RaggedStore:
        """The way back."""
        keys, values, positions, scores = flat
        if keys is None or values is None or positions is None:
            raise RuntimeError("blocks without tokens")
        if self.units is not None:
            made = RaggedStore(self.units, keys, values, positions, scores)
            made.recent, made.recent_of_unit, ring_of_all = self._known
            made.ring = ring_of_all if rings else None
            for run, (ring, full, full_at) in zip(made.runs, self._runs, strict=True):
                run.ring, run.full, run.full_at = ring if rings else None, full, full_at
            return made
        plain, shape = LayerStore(), (*self.shape, self.room[0])
        plain.keys, plain.values = keys.view(*shape, -1), values.view(*shape, -1)
        plain.positions = positions.view(shape)
        plain.scores = None if scores is None else scores.view(shape)
        plain.used = self.room[0]
        return plain
