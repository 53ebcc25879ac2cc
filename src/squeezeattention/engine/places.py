"""Where the KV heads of a batch's requests lie in their blocks, worked out once for requests of the same budgets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from ..cache.ragged import RaggedStore, Ring
from ..cache.units import Units
from ..errors import CacheStateError
from ..policies import EvictionPolicy

#: Batches of different budgets that are remembered: they come and go one request at a time.
_REMEMBERED = 8


class Places:
    """Of R requests with H KV heads: which place of whose blocks each of a store's S slots is."""

    def __init__(
        self, rooms: tuple[tuple[int, ...], ...], begins: tuple[int, ...], policy: EvictionPolicy, device: torch.device
    ) -> None:
        """``rooms``: ``[R][H]`` places of each KV head; a request's heads lie one behind the other, from place
        ``begins[r]`` on."""
        self.rooms = rooms
        self.units = Units(rooms, device)
        """One unit for each request and KV head."""
        self._policy = policy
        self._most = max(begin + sum(own) for begin, own in zip(begins, rooms, strict=True))
        unit, column = self.units.of_slot
        heads = torch.tensor(rooms, device=device)
        begin = (heads.cumsum(1) - heads + torch.tensor(begins, device=device)[:, None]).flatten()  # [U]
        self._row = unit // self.units.heads  # [S]
        self._place = begin[unit] + column  # [S]
        self._noted: tuple[torch.Tensor | None, torch.Tensor | None, Ring | None, list[int | None]] | None = None

    def slots(self, tables: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        """Int64 ``[S]``: slots of the cache ``[blocks, H, b, ...]``, counted through, for requests with these blocks
        int64 ``[R, n]``. Raises :class:`CacheStateError` where they are too few."""
        per_block = cache.shape[1] * cache.shape[2]
        if self._most > tables.shape[1] * per_block:
            raise CacheStateError(
                f"a request keeps {self._most} tokens of its KV heads, and has {tables.shape[1]} blocks of "
                f"{per_block}: please report this"
            )
        block = tables[self._row, torch.div(self._place, per_block, rounding_mode="floor")]
        return block * per_block + self._place % per_block

    def note(self, store: RaggedStore, at: Sequence[int]) -> None:
        """Tell a store of these slots how tokens are chosen, and which runs are full; ``at``: position of each
        request's new token."""
        if self._noted is None:
            store.note_policy(self._policy, None)
            self._noted = store.recent, store.recent_of_unit, store.ring, [run.ring for run in store.runs]
        store.recent, store.recent_of_unit, store.ring, rings = self._noted
        for run, ring in zip(store.runs, rings, strict=True):
            places = range(run.run.start, run.run.stop)
            run.ring = ring
            run.full = all(at[self.units.sequence[place] // self.units.heads] >= run.room for place in places)


class PlacesByRoom:
    """The places of one layer's batches."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self._policy = policy
        self._known: OrderedDict[tuple[tuple[tuple[int, ...], ...], tuple[int, ...]], Places] = OrderedDict()

    def of(self, rooms: Sequence[Sequence[int]], device: torch.device, begins: Sequence[int] | None = None) -> Places:
        """For requests whose KV heads have so many places, ``[R][H]``, from place ``begins[r]`` on (or the first)."""
        key = tuple(map(tuple, rooms)), (0,) * len(rooms) if begins is None else tuple(begins)
        found = self._known.pop(key, None) or Places(*key, self._policy, device)
        self._known[key] = found
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found
