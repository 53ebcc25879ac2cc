"""The tokens of one layer whose KV heads hold different numbers of them; see units.py for how they lie.

All slots of the budgets are there from the cut on: a slot without a token has position -1, and a decode step fills
holes or overwrites, in place. While a further turn is read, each unit has its new tokens behind its old ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..policies import EvictionPolicy
from .store import among, mark_static, ring_at, storage_bytes, without_graph
from .units import Run, Units

#: Steps whose slots are worked out at once.
_AHEAD = 32


class RunView:
    """One run of a store as rectangles ``[units, room, ...]``: views of the flat buffers, which do not move."""

    def __init__(self, store: RaggedStore, run: Run) -> None:
        units, room, slots = run.units, run.room, run.slots
        self.run = run
        self.room = room
        self.keys = store.keys[slots].view(units, room, -1)
        self.values = store.values[slots].view(units, room, -1)
        self.positions = store.positions[slots].view(units, room)
        self.scores = None if store.scores is None else store.scores[slots].view(units, room)
        self.rows = store.units.row[run.start : run.stop]
        """[units] row of each unit."""
        self.ring: int | None = None
        """Leading tokens with a slot of their own; ``None``: slots are searched."""
        self.full = False
        """Whether every slot holds a token, as far as a step needs to know."""
        self.full_at: int | None = None
        """Columns seen from which on that is so; ``None``: never for sure."""
        self.sink_keys: torch.Tensor | None = None
        """[units, 1, sinks, D]: keys of re-rotated sinks as they were read."""


class Ring:
    """How slots follow from positions where all units have as many leading tokens."""

    def __init__(self, leading: int, units: Units) -> None:
        self.leading, self.heads = leading, units.heads
        self.begin = units.begin.view(units.rows, units.heads)
        self.span = units.rooms.view_as(self.begin) - leading
        # Positions, and [_AHEAD, U] the slots of those and the following; one object, since copies share it.
        self._table: tuple[list[int], torch.Tensor] = [], self.begin

    def slots(self, positions: torch.Tensor) -> torch.Tensor:
        """Slot of each unit's token at ``positions`` ``[..., B or 1, 1]``, int64 ``[..., U]``."""
        slots = (positions - self.leading) % self.span + (self.begin + self.leading)
        if self.leading:
            slots = torch.where(positions < self.leading, self.begin + positions, slots)
        return slots.flatten(-2)

    def slots_at(self, positions: torch.Tensor, start: list[int]) -> torch.Tensor:
        """The same, looked up: ``start`` are the positions, which the host knows.

        Those of the next steps are worked out at once, on the device, and each step takes a row of them.
        """
        begin, table = self._table
        ahead = start[0] - begin[0] if begin else -1
        if not 0 <= ahead < _AHEAD or [one + ahead for one in begin] != start:
            steps = torch.arange(_AHEAD, device=positions.device)[:, None, None]
            begin, table, ahead = list(start), self.slots(positions + steps), 0
            self._table = begin, table
        return table[ahead]


class RaggedStore:
    """Flat buffers: keys [S, D], values [S, Dv], positions [S] int64 (-1 = hole), scores [S] fp32 or ``None``."""

    def __init__(
        self,
        units: Units,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        scores: torch.Tensor | None,
    ) -> None:
        self.units = units
        self.keys, self.values, self.positions, self.scores = keys, values, positions, scores
        self.runs = tuple(RunView(self, run) for run in units.runs)
        self.recent: torch.Tensor | None = None
        """[S] int64: how many newest tokens of a slot's unit stay whatever their score, where a policy goes by that."""
        self.recent_of_unit: torch.Tensor | None = None
        """[U] the same of each *unit*."""
        self.ring: Ring | None = None

    is_empty = False

    def __deepcopy__(self, memo: dict[int, object]) -> RaggedStore:
        columns = (self.keys, self.values, self.positions, self.scores)
        units = self.units.outside_inference_mode()
        twin = RaggedStore(units, *(None if column is None else column.clone() for column in columns))  # type: ignore[arg-type]
        twin.follow(self)
        if units is not self.units:
            twin.ring = None if self.ring is None else Ring(self.ring.leading, units)
            twin.recent, twin.recent_of_unit = (
                None if counts is None else counts.clone() for counts in (self.recent, self.recent_of_unit)
            )
        for mine, theirs in zip(self.runs, twin.runs, strict=True):
            theirs.sink_keys = None if mine.sink_keys is None else mine.sink_keys.clone()
        memo[id(self)] = twin
        return twin

    def in_dtypes(self, keys: torch.dtype, values: torch.dtype) -> RaggedStore:
        """A store of the same tokens with keys and values of these dtypes."""
        twin = RaggedStore(self.units, self.keys.to(keys), self.values.to(values), self.positions, self.scores)
        twin.follow(self)
        for mine, theirs in zip(self.runs, twin.runs, strict=True):
            theirs.sink_keys = None if mine.sink_keys is None else mine.sink_keys.to(keys)
        return twin

    def follow(self, other: RaggedStore) -> None:
        """What is known of another store's runs holds of mine, which are as those were."""
        self.recent, self.recent_of_unit, self.ring = other.recent, other.recent_of_unit, other.ring
        for mine, theirs in zip(self.runs, other.runs, strict=True):
            mine.ring, mine.full, mine.full_at = theirs.ring, theirs.full, theirs.full_at

    # ------------------------------------------------------------------ sizes

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and KV heads."""
        return self.units.rows, self.units.heads

    @property
    def heads_are_equal(self) -> bool:
        """Whether each row's KV heads have as many slots as one another."""
        heads = self.units.heads
        return all(len(set(self.units.room[row : row + heads])) == 1 for row in range(0, len(self.units.room), heads))

    @property
    def used(self) -> int:
        """Slots of the largest unit."""
        return max(self.units.room)

    capacity = used

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's key and value in all KV heads, for one sequence."""
        one = self.keys.shape[1] * self.keys.element_size() + self.values.shape[1] * self.values.element_size()
        return self.units.heads * one

    def kv_bytes(self) -> int:
        """Bytes of the key and value storages, measured."""
        return storage_bytes(self.keys, self.values)

    def index_bytes(self) -> int:
        """Bytes of positions, scores and what else there is beside keys and values, measured."""
        return storage_bytes(self.positions, self.scores, *(run.sink_keys for run in self.runs))

    # --------------------------------------------- rectangles, for the few who need them

    def used_positions(self) -> torch.Tensor:
        """``[B, H, N]`` int64, N the largest room: -1 = hole, or no such slot."""
        slots, inside = self.units.padded
        return torch.where(inside, self.positions[slots], -1).view(*self.shape, -1)

    def used_scores(self) -> torch.Tensor | None:
        """``[B, H, N]`` fp32, or ``None``."""
        if self.scores is None:
            return None
        slots, inside = self.units.padded
        return torch.where(inside, self.scores[slots], 0.0).view(*self.shape, -1)

    def view(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[B, H, N, D]``: a copy with slots that are not there, which no position marks."""
        slots, _ = self.units.padded
        slots = slots.flatten()
        return tuple(  # type: ignore[return-value]
            column.index_select(0, slots).view(*self.shape, -1, column.shape[1]) for column in (self.keys, self.values)
        )

    def add_scores(self, scores: torch.Tensor) -> None:
        """Add ``[B, H, N]`` fp32 to the running sums (started at zero)."""
        flat = scores.detach().reshape(len(self.units.room), -1)
        flat = flat[self.units.of_slot]
        if self.scores is None:
            self.scores = torch.zeros_like(flat)
            for run in self.runs:
                run.scores = self.scores[run.run.slots].view(run.run.units, run.room)
        self.scores.add_(flat)

    def set_scores(self, scores: torch.Tensor) -> None:
        """Scores fp32 ``[B, H, N]`` instead of those there are; in place, where there are any."""
        flat = scores.reshape(len(self.units.room), -1)[self.units.of_slot]
        if self.scores is None:
            self.scores = flat
            for run in self.runs:
                run.scores = self.scores[run.run.slots].view(run.run.units, run.room)
        else:
            self.scores.copy_(flat)

    def take(self, units: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[n, D]`` of units' columns, int64 ``[n]`` twice."""
        slots = self.units.begin[units] + columns
        return self.keys.index_select(0, slots), self.values.index_select(0, slots)

    # ---------------------------------------------------------------- writing

    def append(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> RaggedStore:
        """A store with ``q`` tokens more behind each unit's: ``[B, H, q, D]`` twice, positions ``[B or 1, q]``."""
        rows, heads, length = keys.shape[:3]
        room = [[self.units.room[row * heads + head] + length for head in range(heads)] for row in range(rows)]
        units = Units(room, keys.device)  # the same order: all grew by as much
        keys, values = (self.units.by_place(new.detach().flatten(0, 1)) for new in (keys, values))
        position = positions.expand(rows, length).index_select(0, self.units.row)
        parts: list[list[torch.Tensor]] = [[], [], [], []]
        for run in self.runs:
            own = slice(run.run.start, run.run.stop)
            parts[0].append(torch.cat([run.keys, keys[own]], dim=1).flatten(0, 1))
            parts[1].append(torch.cat([run.values, values[own]], dim=1).flatten(0, 1))
            parts[2].append(torch.cat([run.positions, position[own]], dim=1).flatten())
            if run.scores is not None:
                parts[3].append(torch.nn.functional.pad(run.scores, (0, length)).flatten())
        columns = [torch.cat(part) if part else None for part in parts]
        return RaggedStore(units, *columns)  # type: ignore[arg-type]

    def insert(
        self,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        score: float | torch.Tensor = 0.0,
    ) -> None:
        """Write one token a unit in place: slots int64 ``[U]`` by unit, ``[B, H, 1, D]`` twice, positions ``[U]``, and
        its score, one for all or ``[B, H, 1]``."""
        keys, values = without_graph(keys), without_graph(values)
        self.keys.index_copy_(0, slots, keys.reshape(len(slots), -1))
        self.values.index_copy_(0, slots, values.reshape(len(slots), -1))
        self.positions.index_copy_(0, slots, positions)
        if self.scores is not None:
            if isinstance(score, torch.Tensor):
                self.scores.index_copy_(0, slots, score.reshape(-1))
            else:
                self.scores.index_fill_(0, slots, score)

    def hide(self, gone: torch.Tensor) -> None:
        """Make holes of the tokens at the positions ``gone``, bool ``[B or 1, positions]``, in place."""
        for run in self.runs:
            own = gone.to(run.rows.device)
            own = own if len(own) == 1 else own.index_select(0, run.rows)
            run.positions.masked_fill_(among(run.positions, own), -1)
            run.full, run.full_at = False, None

    def selected(self, rows: torch.Tensor) -> RaggedStore:
        """A store of these rows: int64 indices into the batch. Re-rotated sinks must be back in their place."""
        heads = self.units.heads
        chosen = rows.tolist()
        room = [self.units.room[row * heads : (row + 1) * heads] for row in chosen]
        source = (rows.to(self.units.device)[:, None] * heads + torch.arange(heads, device=self.units.device)).flatten()
        same = room == [self.units.room[row * heads : (row + 1) * heads] for row in range(self.units.rows)]
        units = self.units if same else Units(room, self.units.device)
        unit, column = units.of_slot
        slots = self.units.begin[source[unit]] + column
        scores = None if self.scores is None else self.scores[slots]
        return RaggedStore(
            units, self.keys.index_select(0, slots), self.values.index_select(0, slots), self.positions[slots], scores
        )

    def note_policy(self, policy: EvictionPolicy, window: int | None) -> None:
        """What decode steps need to know of how tokens are chosen."""
        for run in self.runs:
            run.ring = ring_at(policy, window, run.room)
        rings = {run.ring for run in self.runs}
        if None not in rings and len(rings) == 1:
            self.ring = Ring(rings.pop() or 0, self.units)
        spared = [policy.recent_tokens(run.room) for run in self.runs]
        if None not in spared and (policy.needs_scores or policy.scores_tokens):
            counts = torch.tensor(spared, device=self.units.device)
            units = torch.tensor([run.run.units for run in self.runs], device=self.units.device)
            by_place = counts.repeat_interleave(units, output_size=len(self.units.room))
            self.recent_of_unit = self.units.by_unit(by_place)
            slots = torch.tensor([run.run.units * run.room for run in self.runs], device=self.units.device)
            self.recent = counts.repeat_interleave(slots, output_size=self.units.slots)

    def trim(self) -> None:
        """Nothing: the slots of the budget are there from the cut on."""

    def settle(self) -> None:
        """From now on a compiler sees the buffers, and a CUDA graph reads and writes them in place."""
        _ = self.units.of_slot, self.units.padded  # made now, not while steps are traced
        for buffer in (self.keys, self.values, self.positions, self.scores):
            if buffer is not None:
                mark_static(buffer)


def same_room(room: Sequence[Sequence[int]]) -> int | None:
    """The number of slots that all units have, if they agree."""
    found = {slots for row in room for slots in row}
    return found.pop() if len(found) == 1 else None
