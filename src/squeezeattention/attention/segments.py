"""A decode step over many units of different lengths at once, on the CPU.

Taken one after the other (ragged.py), each length costs three calls, some 20 us, however few tokens it has. The flat
buffers are a sparse matrix's columns too: row u of it has entries where the slots of unit u lie, so that its entries
are the logits, and a product with it is the sum over each unit's own values::

             slots 0 ..                      S
    unit 1   x x x x . . . . . . . . . . . .
    unit 4   . . . . x x x x x x x . . . . .        logits = entries of (queries @ keys.T) where there is an x
    unit 0   . . . . . . . . . . . x x x x x        output = softmax of each row @ values
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from .core import Scoring

if TYPE_CHECKING:
    from ..cache.ragged import RaggedStore
    from ..cache.units import Units

#: Fewer lengths than this are faster one after the other.
_LENGTHS = 6


def takes(store: RaggedStore, query: torch.Tensor, scoring: Scoring) -> bool:
    """Whether such a step can be made for a query ``[B, Hq, 1, D]``, and is the faster one."""
    return (
        len(store.runs) >= _LENGTHS
        and query.device.type == "cpu"
        and query.dtype == store.keys.dtype
        and query.dtype in (torch.float32, torch.float64)
        and scoring.sink_logits is None
        and not query.requires_grad
        and not torch.compiler.is_dynamo_compiling()
    )


def attend_one_by_segments(
    queries: torch.Tensor, store: RaggedStore, masks: list[torch.Tensor | None], scoring: Scoring
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of scaled queries ``[U, G, D]``, in the order in which units lie -> ``[U, G, Dv]``.

    Also the probabilities ``[G, S]``. ``masks``: visible slots of each run, bool ``[u, n]``, ``None`` where all are.
    """
    units = store.units
    entries, keys = _entries(units, queries.dtype), store.keys.t()
    found = [torch.sparse.sampled_addmm(entries, query, keys, beta=0.0).values() for query in queries.unbind(1)]
    logits = scoring.capped(torch.stack(found) if len(found) > 1 else found[0][None])
    if any(mask is not None for mask in masks):
        parts = zip(logits.split([run.run.units * run.room for run in store.runs], dim=1), masks, strict=True)
        for part, mask in parts:
            if mask is not None:
                part.masked_fill_(~mask.flatten(), -torch.inf)
    mass = torch.empty_like(logits)
    lengths = [units.room[unit] for unit in units.sequence]
    for own, out in zip(logits.split(lengths, dim=1), mass.split(lengths, dim=1), strict=True):
        torch.softmax(own, dim=1, out=out)
    begin, slots = entries.crow_indices()[:-1], entries.col_indices()
    sums = [F.embedding_bag(slots, store.values, begin, mode="sum", per_sample_weights=own) for own in mass]
    return torch.stack(sums, dim=1), mass


def _entries(units: Units, dtype: torch.dtype) -> torch.Tensor:
    """The sparse matrix ``[U, S]`` whose row of each place has its own slots; entries are not looked at."""
    if units.entries is None or units.entries.dtype != dtype:
        slots, zeros = _numbers(units.slots, dtype)
        begin = torch.cat([units.first_slots, torch.tensor([units.slots])]).int()
        with warnings.catch_warnings():  # "sparse tensors are in beta": not what a user has asked for
            warnings.simplefilter("ignore", UserWarning)
            units.entries = torch.sparse_csr_tensor(
                begin, slots[: units.slots], zeros[: units.slots], (len(units.room), units.slots),
                check_invariants=False,
            )  # fmt: skip
    return units.entries


def _numbers(slots: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """At least so many numbers from 0 on, int32, and zeros: the same ones for all layers."""
    return _first_numbers(1 << max(slots - 1, 0).bit_length(), dtype)


@functools.lru_cache(maxsize=8)
def _first_numbers(slots: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode(False):
        return torch.arange(slots, dtype=torch.int32), torch.zeros(slots, dtype=dtype)
