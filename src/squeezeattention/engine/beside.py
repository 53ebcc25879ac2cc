"""What lies beside vLLM's pool: the position and, where a policy asks for it, the score of each of its slots.

With a block table for each layer all layers' pages lie in one tensor, and no block is two layers': one pair of tensors
serves them all, as one tensor of keys and values does.
"""

from __future__ import annotations

import weakref
from typing import ClassVar

import torch


class Beside:
    """Positions int64 ``[slots]`` (-1 = none) and scores fp32 ``[slots]`` of one cache tensor, counted through as its
    blocks ``[blocks, H, b, ...]`` are. A request writes its slots before it reads them."""

    _known: ClassVar[weakref.WeakValueDictionary[tuple[object, ...], Beside]] = weakref.WeakValueDictionary()

    def __init__(self, slots: int, device: torch.device, *, scores: bool) -> None:
        self.positions = torch.full((slots,), -1, dtype=torch.int64, device=device)
        self.scores = torch.zeros(slots, device=device) if scores else None

    @classmethod
    def of(cls, cache: torch.Tensor, *, scores: bool) -> Beside:
        """The one of this memory, for as long as some layer holds on to it."""
        slots = cache.shape[:3].numel()
        key = (cache.device, cache.data_ptr(), slots, scores)
        found = cls._known.get(key)
        if found is None:
            found = cls._known[key] = cls(slots, cache.device, scores=scores)
        return found

    def bytes(self) -> int:
        """Bytes of both."""
        return sum(one.nbytes for one in (self.positions, self.scores) if one is not None)
