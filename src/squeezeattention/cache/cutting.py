"""The cut of a layer to budgets that differ among its KV heads, or among the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..policies import EvictionPolicy, Tokens
from ..policies.ranking import survivors
from .ragged import RaggedStore
from .store import LayerStore, ring_at, ring_slots
from .units import Units


def cut_units(
    source: LayerStore | RaggedStore,
    room: Sequence[Sequence[int]],
    newest: Sequence[int],
    policy: EvictionPolicy,
    window: int | None,
    *,
    more: bool = False,
) -> RaggedStore:
    """Keep ``room[row][head]`` tokens of each KV head; ``newest``: position of each row's last token (or of all).

    With ``more`` of the prompt to come, slots are made for what there is only, in no certain order.
    """
    rows, heads = source.shape
    positions, scores = source.used_positions(), source.used_scores()
    device, columns = positions.device, positions.shape[-1]
    positions = positions.expand(rows, heads, columns).flatten(0, 1)
    scores = None if scores is None else scores.flatten(0, 1)
    if more:
        held = (positions >= 0).sum(1).view(rows, heads).clamp(min=1).tolist()
        room = [[min(pair) for pair in zip(*both, strict=True)] for both in zip(room, held, strict=True)]
    units = Units(room, device)
    last = torch.tensor([after for after in newest] if len(newest) > 1 else list(newest) * rows, device=device)
    found = []
    for run in units.runs:
        own = units.order[run.start : run.stop]
        tokens = Tokens(
            positions[own][:, None],
            last[own // heads][:, None, None],
            None if scores is None else scores[own][:, None],
        )
        index = survivors(policy, tokens, run.room, window).expand(run.units, 1, -1)[:, 0]
        # The extra column swallows those that are absent.
        slots = torch.full((run.units, run.room + 1), -1, dtype=torch.int64, device=device)
        ring = None if more else ring_at(policy, window, run.room)
        if ring is None:
            slots[:, : index.shape[1]] = index
        else:
            kept = tokens.positions[:, 0].gather(-1, index.clamp(min=0))
            slots.scatter_(-1, ring_slots(kept, ring, run.room).masked_fill(index < 0, run.room), index)
        found.append(slots[:, : run.room].flatten())
    column = torch.cat(found)
    hole, column, unit = column < 0, column.clamp(min=0), units.of_slot[0]
    keys, values = source.take(unit, column)
    store = RaggedStore(
        units, keys, values, positions[unit, column].masked_fill(hole, -1),
        None if scores is None else scores[unit, column].masked_fill(hole, 0.0),
    )  # fmt: skip
    if not more:
        store.note_policy(policy, window)
    return store


def as_rectangle(store: RaggedStore) -> LayerStore:
    """A store of one run as the plain rectangle that it is."""
    (run,) = store.runs
    plain = LayerStore()
    shape = (*store.shape, run.room)
    plain.keys, plain.values = store.keys.view(*shape, -1), store.values.view(*shape, -1)
    plain.positions = store.positions.view(shape)
    plain.scores = None if store.scores is None else store.scores.view(shape)
    plain.used = run.room
    return plain
