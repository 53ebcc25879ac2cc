"""Moving rotary keys to another position, with the model's own rotary embedding."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from ..device import execution_device
from ..errors import UnsupportedModelError

_REFUSED_TYPES = ("dynamic", "longrope")  # their frequencies depend on the length seen


class Rerotation:
    """``R(d) K(p) = K(p + d)``: turns keys that sit at position p as if they sat at p + d.

    Built from the model's ``rotary_emb`` and its ``rotate_half``, so that partial rotation, interleaved pairs
    and scaled frequencies come out as the model has them; :meth:`build` checks the identity numerically.
    """

    def __init__(self, rotary: torch.nn.Module, rotate_half: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._rotary = rotary
        self._rotate_half = rotate_half

    def __call__(self, keys: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Keys ``[B, H, s, D]`` moved by ``shift`` int64 ``[B or 1, 1]`` positions; same dtype."""
        cos, sin = self._rotary(keys.float(), shift)
        scaling = float(getattr(self._rotary, "attention_scaling", 1.0))
        cos, sin = cos[:, None].float() / scaling, sin[:, None].float() / scaling
        width = cos.shape[-1]
        turned, rest = keys[..., :width].float(), keys[..., width:]
        turned = turned * cos + self._rotate_half(turned) * sin
        return torch.cat([turned.to(keys.dtype), rest], dim=-1)

    @classmethod
    def build(cls, decoder: torch.nn.Module, attention: torch.nn.Module, config: Any) -> Rerotation:
        """The re-rotation of a model; raises :class:`UnsupportedModelError` where it is not exact."""
        family = type(attention).__name__
        rotary = getattr(decoder, "rotary_emb", None)
        namespace = vars(sys.modules[type(attention).__module__])
        rotate_half, apply = namespace.get("rotate_half"), namespace.get("apply_rotary_pos_emb")
        if rotary is None or rotate_half is None or apply is None:
            raise UnsupportedModelError(
                f'positions="cache" needs rotary embeddings of the usual form; {family} has none. '
                'Use positions="original"'
            )
        if getattr(rotary, "rope_type", "default") in _REFUSED_TYPES:
            raise UnsupportedModelError(
                f'positions="cache" cannot re-rotate {rotary.rope_type!r} RoPE, whose frequencies change with '
                'the length; use positions="original"'
            )
        rerotation = cls(rotary, rotate_half)
        if not rerotation._is_exact(attention, apply):
            raise UnsupportedModelError(
                f'positions="cache" cannot re-rotate the keys of {family} exactly; use positions="original"'
            )
        return rerotation

    @torch.no_grad()
    def _is_exact(self, attention: torch.nn.Module, apply: Callable[..., Any]) -> bool:
        device = execution_device(attention)
        generator = torch.Generator().manual_seed(0)
        try:
            keys = torch.randn(1, 1, 3, _head_dim(attention), generator=generator).to(device)
            at = torch.tensor([[0, 1, 2]], device=device)
            here, there = self._rotated(apply, keys, at), self._rotated(apply, keys, at + 57)
            moved = self(here, torch.tensor([[57]], device=device))
            return bool((moved - there).abs().max() < 1e-3)
        except (TypeError, RuntimeError, ValueError, AttributeError):
            return False

    def _rotated(self, apply: Callable[..., Any], keys: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        cos, sin = self._rotary(keys, at)
        width = cos.shape[-1]
        turned = apply(keys[..., :width], keys[..., :width], cos, sin)[1]
        return torch.cat([turned, keys[..., width:]], dim=-1)


def _head_dim(attention: torch.nn.Module) -> int:
    for name in ("head_dim", "head_size"):
        if isinstance(getattr(attention, name, None), int):
            return int(getattr(attention, name))
    raise AttributeError("head_dim")
