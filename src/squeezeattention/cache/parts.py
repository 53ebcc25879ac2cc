"""What a scorer may use of a layer's attention module; found by hf/parts.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..attention.turning import Turning


@dataclass(frozen=True)
class Parts:
    """Of one layer; ``None``: not asked for. Copies of a cache share them."""

    output: Callable[[], torch.Tensor] | None = None
    """The output projection, [Hq * Dv, W]: all query heads' side by side."""
    turning: Turning | None = None
    """The rotary embedding."""

    def __deepcopy__(self, memo: dict[int, object]) -> Parts:
        return self
