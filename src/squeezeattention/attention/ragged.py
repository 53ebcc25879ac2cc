"""Exact attention where KV heads hold different numbers of tokens: run by run, a run's units as a batch of one head.

Shapes as in core.py, with U = B * H units, sorted by what they hold (cache/units.py); u units of one run hold n slots.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from . import segments
from .accelerated import attend_accelerated
from .core import Scoring, attend
from .visibility import Visibility

if TYPE_CHECKING:
    from ..cache.ragged import RaggedStore


def attend_one_ragged(
    query: torch.Tensor,
    store: RaggedStore,
    masks: list[torch.Tensor | None],
    scoring: Scoring,
    *,
    scores: bool,
) -> torch.Tensor:
    """Attention of a decode step, query ``[B, Hq, 1, D]`` -> ``[B, Hq, 1, Dv]``; the store's scores are added to.

    ``masks``: visible slots of each run, bool ``[u, n]``, ``None`` where all are.
    """
    batch, query_heads, _, width = query.shape
    units = store.units
    # What can be done for all units is done before they are told apart: with eight runs a layer each operation counts.
    packed = units.by_place(query.reshape(len(units.room), -1, width)) * scoring.scale
    sinks = _sinks_by_unit(scoring, store)
    if segments.takes(store, query, scoring):
        out, mass = segments.attend_one_by_segments(packed, store, masks, scoring)
        if scores:
            _scores(store.scores).add_(mass[0] if len(mass) == 1 else mass.mean(dim=0))
        return units.by_unit(out).view(batch, query_heads, 1, -1)
    parts, received = [], []
    for run, mask, own in zip(store.runs, masks, packed.split(units.counts), strict=True):
        logits = scoring.logits_of_scaled(own, run.keys)
        if mask is not None:
            logits.masked_fill_(~mask[:, None], -torch.inf)
        if sinks is None:
            mass = logits.softmax(dim=-1)
        else:
            sink = sinks[run.run.start : run.run.stop, :, None].to(logits)
            mass = torch.cat([logits, sink], dim=-1).softmax(dim=-1)[..., :-1]
        parts.append(torch.bmm(mass.to(run.values.dtype), run.values))
        if scores:
            received.append((mass[:, 0] if mass.shape[1] == 1 else mass.mean(dim=1)).flatten())
    if scores:
        _scores(store.scores).add_(torch.cat(received))
    out = units.by_unit(torch.cat(parts))
    return out.view(batch, query_heads, 1, -1)


def attend_one_ragged_accelerated(
    query: torch.Tensor,
    store: RaggedStore,
    positions: torch.Tensor,
    window: int | None,
    scoring: Scoring,
    *,
    scores: bool,
    recent: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As :func:`attend_one_ragged`, all units in one launch: what a query at ``positions`` ``[B or 1, 1]`` sees is
    found on the way.

    With ``recent`` int64 ``[U]``, how many newest tokens of each unit must stay, the slot that the next token of each
    takes is returned too, int64 ``[U]``.
    """
    from ..kernels.ops import ragged_decode_attention

    units = store.units
    out, chosen = ragged_decode_attention(
        query.reshape(len(units.room), -1, query.shape[-1]), store.keys, store.values, units.begin, units.rooms,
        store.used, units.heads, scoring.scale, scoring.softcap, scoring.sink_logits,
        positions=store.positions, query_positions=positions[:, 0], window=window,
        dense=all(run.full and (window is None or run.ring is not None) for run in store.runs),
        scores=_scores(store.scores) if scores else None, recent=recent,
    )  # fmt: skip
    return out.view(*query.shape[:2], 1, -1), chosen


def attend_ragged(
    query: torch.Tensor,
    store: RaggedStore,
    visibility: Visibility,
    scoring: Scoring,
    *,
    scores: bool,
    accelerated: bool,
) -> torch.Tensor:
    """Attention of several queries ``[B, Hq, q, D]`` -> ``[B, Hq, q, Dv]``; the store's scores are added to.

    ``visibility`` says where the queries are; which tokens there are the store knows.
    """
    batch, query_heads, length, width = query.shape
    units = store.units
    packed = units.by_place(query.reshape(len(units.room), -1, length, width))
    positions = visibility.queries.expand(batch, length).index_select(0, units.row)
    sinks = _sinks_by_unit(scoring, store)
    parts = []
    for run in store.runs:
        own = slice(run.run.start, run.run.stop)
        seen = replace(visibility, queries=positions[own], tokens=run.positions[:, None], fresh=False, ordered=False)
        given = scoring if sinks is None else replace(scoring, sink_logits=sinks[own])
        keys, values = run.keys[:, None], run.values[:, None]
        mass: torch.Tensor | None
        if accelerated and scores and sinks is None:
            out, mass = attend_accelerated(packed[own], keys, values, seen, given, score_heads=1)
        else:
            out, mass = attend(packed[own], keys, values, seen, given, score_heads=1 if scores else None)
        parts.append(out)
        if mass is not None:
            _scores(run.scores).add_(mass[:, 0].detach())
    out = units.by_unit(torch.cat(parts))
    return out.reshape(batch, query_heads, length, -1)


def _scores(scores: torch.Tensor | None) -> torch.Tensor:
    if scores is None:
        raise RuntimeError("a store whose policy looks at scores has none")
    return scores


def _sinks_by_unit(scoring: Scoring, store: RaggedStore) -> torch.Tensor | None:
    """Learned sink logits ``[U, G]`` of each unit's query heads, in the order of the runs."""
    if scoring.sink_logits is None:
        return None
    by_head = scoring.sink_logits.view(store.units.heads, -1)
    return by_head.index_select(0, store.units.order % store.units.heads)
