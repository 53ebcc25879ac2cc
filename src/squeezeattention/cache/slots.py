"""Where a decode step's tokens go in a ragged store, and what its query sees there."""

from __future__ import annotations

import torch

from ..by_row import by_row
from ..policies import EvictionPolicy, Tokens
from ..policies.ranking import victim
from .ragged import RaggedStore, RunView
from .store import ring_slots


def note_fill(store: RaggedStore, after: list[int], seen: int) -> None:
    """Find out from when on each run is full; ``after``: the next position of each row, after ``seen`` columns.

    A unit that lacks nothing but tokens which were never there fills up with each step; one that lost some, in a turn
    with a smaller budget say, may have holes for as long as it lives.
    """
    units = store.units
    rows = torch.tensor(by_row(after, units.rows), device=units.device)
    held = [(run.positions >= 0).sum(1) == rows[run.rows].clamp(max=run.room) for run in store.runs]
    whole = torch.stack([run.all() for run in held]).tolist()
    for run, complete in zip(store.runs, whole, strict=True):
        members = {units.sequence[place] // units.heads for place in range(run.run.start, run.run.stop)}
        missing = max(run.room - (after[0] if len(after) == 1 else after[row]) for row in members)
        run.full_at = seen + missing if complete else None


def note_full(store: RaggedStore, seen: int) -> None:
    """Before a step, after ``seen`` columns: which runs have a token in every slot."""
    for run in store.runs:
        run.full = run.full_at is not None and seen >= run.full_at


def slots_of(
    store: RaggedStore,
    policy: EvictionPolicy,
    positions: torch.Tensor,
    window: int | None,
    start: list[int] | None = None,
) -> torch.Tensor:
    """Slot of the new token of each unit, int64 ``[U]``; ``positions`` ``[B or 1, 1]``, which are ``start`` if the host
    knows them."""
    units = store.units
    if store.ring is not None:
        return store.ring.slots(positions) if start is None else store.ring.slots_at(positions, start)
    if store.recent is not None and store.scores is not None and window is None:
        columns = _columns_by_score(store, store.recent, store.scores, positions)
    else:
        columns = torch.cat([_columns_of(run, policy, positions, window) for run in store.runs])
    return units.by_unit(columns + units.first_slots)


def _columns_by_score(
    store: RaggedStore, recent: torch.Tensor, scores: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """[U] columns of the lowest scores that are not among each unit's newest, the oldest among equals, by place.

    All slots are ranked together, and each run's are then searched: few operations, however many the runs.
    """
    held = store.positions
    newest = positions[0] if len(positions) == 1 else positions[store.units.of_slot[0] // store.units.heads, 0]
    spared = held + recent > newest
    if not all(run.full for run in store.runs):
        spared &= held >= 0
    # Score and age as one number: floats that are not negative are ordered as their bits are.
    rank = torch.add(held, scores.view(torch.int32), alpha=2**32)
    rank.masked_fill_(spared, torch.iinfo(torch.int64).max)
    parts = zip(rank.split([run.run.units * run.room for run in store.runs]), store.runs, strict=True)
    return torch.cat([part.view(run.run.units, run.room).argmin(dim=-1) for part, run in parts])


def _columns_of(run: RunView, policy: EvictionPolicy, positions: torch.Tensor, window: int | None) -> torch.Tensor:
    """[u] column that each of a run's units gives its new token."""
    newest = positions[:, None] if len(positions) == 1 else positions.index_select(0, run.rows)[:, None]
    if run.ring is not None:
        return ring_slots(newest.flatten(), run.ring, run.room).expand(run.run.units)
    tokens = Tokens(run.positions[:, None], newest, None if run.scores is None else run.scores[:, None])
    found = victim(policy, tokens, run.room, window, dense=run.full and window is None)
    return found.expand(run.run.units, 1, 1).flatten()


def masks_of(store: RaggedStore, positions: torch.Tensor, window: int | None) -> list[torch.Tensor | None]:
    """Slots of each run that the step's query at ``positions`` ``[B or 1, 1]`` sees, bool ``[u, n]``; ``None``: all."""
    masks: list[torch.Tensor | None] = []
    for run in store.runs:
        if run.full and (window is None or run.ring is not None):
            masks.append(None)
            continue
        visible = run.positions >= 0
        if window is not None:
            own = positions if len(positions) == 1 else positions.index_select(0, run.rows)
            visible &= run.positions > own - window
        masks.append(visible)
    return masks
