"""StreamingLLM's sinks at positions of the cache: at each step their keys are turned to sit right before the window."""

from __future__ import annotations

import torch

from ..attention.rope import Rerotation
from .ragged import RaggedStore
from .store import LayerStore


def place_sinks(
    store: LayerStore | RaggedStore, ring: int | None, rerotation: Rerotation, held: torch.Tensor | None
) -> torch.Tensor | None:
    """Turn the sinks' keys so that they sit right before the oldest token of the window.

    ``ring``: sinks of a rectangle's ring, ``None`` where nothing is to be turned; ``held`` and what is returned: its
    sinks' keys as they were read, ``[B, H, sinks, D]``. A ragged store keeps its own.
    """
    if isinstance(store, RaggedStore):
        for run in store.runs:
            if run.ring:
                window = run.positions[:, run.ring :]
                run.sink_keys = turn_sinks(run.keys[:, None], window, run.ring, rerotation, run.sink_keys)
        return held
    if store.keys is None or not ring:
        return held
    window = store.used_positions()[:, 0, ring:]  # a ring's heads agree
    return turn_sinks(store.keys, window, ring, rerotation, held)


def restore_sinks(store: LayerStore | RaggedStore, held: torch.Tensor | None) -> None:
    """Put the sinks' keys back as they were read."""
    if isinstance(store, RaggedStore):
        for run in store.runs:
            if run.sink_keys is not None:
                run.keys[:, : run.sink_keys.shape[2]] = run.sink_keys[:, 0]
                run.sink_keys = None
    elif held is not None and store.keys is not None:
        store.keys[:, :, : held.shape[2]] = held


def turn_sinks(
    keys: torch.Tensor, window: torch.Tensor, sinks: int, rerotation: Rerotation, held: torch.Tensor | None
) -> torch.Tensor:
    """Turn the first ``sinks`` of keys ``[B, H, N, D]``, in place, to sit right before the oldest of ``window``.

    ``window``: positions ``[B or 1, n]``, -1 = hole; ``held``: the sinks as they were read ``[B, H, sinks, D]``, which
    is also what is returned; ``None``: they are still so.
    """
    oldest = window.masked_fill(window < 0, torch.iinfo(torch.int64).max).amin(-1, keepdim=True)
    shift = torch.where((window >= 0).any(-1, keepdim=True), oldest - sinks, 0)
    here = keys[:, :, :sinks]
    if held is None:
        held = here.clone()
    elif len(shift) > 1:  # a row that is not full yet still has its sinks as they were, or is filling them
        held = torch.where((shift == 0)[:, None, :, None], here, held)
    here.copy_(rerotation(held, shift))
    return held
