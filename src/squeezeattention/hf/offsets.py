"""How far a text's positions are behind its columns: models whose images' tokens share positions (mRoPE) keep that on
themselves, of the text that they read last, and go on with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

_NAME = "rope_deltas"


def offsets_of(model: nn.Module) -> list[torch.Tensor | None]:
    """What each part of the model that keeps such a thing has; empty for all other models."""
    return [getattr(part, _NAME) for part in _keepers(model)]


def put_offsets(model: nn.Module, found: Sequence[torch.Tensor | None]) -> None:
    """As if the model had read that text last."""
    for part, offset in zip(_keepers(model), found, strict=False):
        if offset is not None:
            setattr(part, _NAME, offset)


def _keepers(model: nn.Module) -> Iterator[nn.Module]:
    return (part for part in model.modules() if _NAME in vars(part))
