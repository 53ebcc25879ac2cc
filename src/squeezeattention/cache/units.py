"""How the tokens of a layer lie in flat buffers when its KV heads, or the rows of a batch, hold different numbers.

A *unit* is one KV head of one row, numbered ``row * heads + head``. Units of equal room lie side by side, a *run*, so
that one batched product serves them all; what is stored is the sum of the budgets and nothing else::

    slot     0 ..                                                            S
    keys   [ unit 1 | unit 4 | unit 0    | unit 5    | unit 2 ............... ]    [S, D]
             room 36           room 96                 room 1170
             \\____ run 0 ____/ \\______ run 1 _______/  \\_______ run 2 _______/

Where no two are equal, they lie as they are numbered, and nothing has to be put in order at a step.

A layer whose heads and rows are equal has one run, and that is the plain ``[B, H, N, D]`` of :class:`LayerStore`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Run:
    """Units of equal room."""

    start: int
    """Place of the first of them in :attr:`Units.order`."""
    stop: int
    room: int
    """Slots of each."""
    first: int
    """Slot where the first of them begins."""

    @property
    def units(self) -> int:
        return self.stop - self.start

    @property
    def slots(self) -> slice:
        return slice(self.first, self.first + self.units * self.room)


class Units:
    """Which unit lies where; tensors are int64 on one device. Nothing of it changes."""

    def __init__(self, room: Sequence[Sequence[int]], device: torch.device) -> None:
        """``room``: slots of each KV head, for each row."""
        self.rows, self.heads = len(room), len(room[0])
        self.device = device
        self.room = tuple(slots for row in room for slots in row)
        self.natural = len(set(self.room)) == len(self.room)
        """Whether units lie in the order of their numbers."""
        numbers = range(len(self.room))
        self.sequence = list(numbers) if self.natural else sorted(numbers, key=lambda unit: self.room[unit])
        self.runs = tuple(self._runs())
        self.counts = [run.units for run in self.runs]
        self.slots = sum(self.room)
        self.order = torch.tensor(self.sequence, device=device)
        """[U] the unit at each place."""
        self.place = self.order.argsort()
        """[U] the place of each unit."""
        self.row = self.order // self.heads
        """[U] the row of the unit at each place."""
        self.rooms = torch.tensor(self.room, device=device)
        """[U] slots of each *unit*."""
        ordered = self.rooms[self.order]
        self.first_slots = ordered.cumsum(0) - ordered
        """[U] the first slot of the unit at each place."""
        self.begin = self.first_slots[self.place]
        """[U] the first slot of each *unit*."""
        self.entries: torch.Tensor | None = None
        """[U, S] sparse: which slots are whose, for those who compute so (attention/segments.py)."""
        self._of_slot: tuple[torch.Tensor, torch.Tensor] | None = None
        self._padded: tuple[torch.Tensor, torch.Tensor] | None = None

    def _runs(self) -> list[Run]:
        runs: list[Run] = []
        slot = 0
        for place, unit in enumerate(self.sequence):
            room = self.room[unit]
            if runs and runs[-1].room == room:
                runs[-1] = Run(runs[-1].start, place + 1, room, runs[-1].first)
            else:
                runs.append(Run(place, place + 1, room, slot))
            slot += room
        return runs

    def __deepcopy__(self, memo: object) -> Units:
        return self

    def outside_inference_mode(self) -> Units:
        """Units like these that autograd may see: these, unless they were made under ``torch.inference_mode()``."""
        if not self.order.is_inference() or torch.is_inference_mode_enabled():
            return self
        rows = [self.room[row * self.heads : (row + 1) * self.heads] for row in range(self.rows)]
        return Units(rows, self.device)

    def by_place(self, of_unit: torch.Tensor) -> torch.Tensor:
        """What is given of each unit ``[U, ...]``, in the order in which they lie."""
        return of_unit if self.natural else of_unit.index_select(0, self.order)

    def by_unit(self, of_place: torch.Tensor) -> torch.Tensor:
        """The way back."""
        return of_place if self.natural else of_place.index_select(0, self.place)

    @property
    def of_slot(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[S] twice: the unit that each slot belongs to, and the how manieth of its slots it is."""
        if self._of_slot is None:
            units = self.order.repeat_interleave(self.rooms[self.order], output_size=self.slots)
            self._of_slot = units, torch.arange(self.slots, device=self.device) - self.begin[units]
        return self._of_slot

    @property
    def padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``[U, N]`` slot of each unit's columns, N the largest room, and which of them there are (bool)."""
        if self._padded is None:
            columns = torch.arange(max(self.room), device=self.device)
            inside = columns < self.rooms[:, None]
            self._padded = torch.where(inside, self.begin[:, None] + columns, 0), inside
        return self._padded
