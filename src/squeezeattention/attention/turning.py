"""Queries as they were before a model's rotary embedding, and as they would be at positions to come."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch

from ..device import execution_device
from ..errors import UnsupportedModelError
from .rope import _REFUSED_TYPES, _head_dim

#: Rotates ``[B, H, n, D]`` by cosines and sines ``[B or 1, n, *]``; the same as a model does it.
Apply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Turning:
    """A model's rotation of its queries, back and ahead; without rotary embedding it does nothing.

    It goes by the model's own functions, so that partial rotation, interleaved pairs and scaled frequencies come out as
    the model has them. A rotation is linear in cosine and sine: turned back it is the same with the sine's sign
    changed, and the mean of several is the one of the mean cosine and sine.
    """

    def __init__(self, angles: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], apply: Apply) -> None:
        self._angles, self._apply = angles, apply

    def __deepcopy__(self, memo: dict[int, Any]) -> Turning:
        return self

    def back(self, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """fp32 ``[B, H, n, D]`` at ``positions`` int64 ``[B or 1, n]`` as they were before."""
        cos, sin = self._pure(positions)
        return self._apply(states.float(), cos, -sin)

    def ahead(self, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """fp32 ``[B, H, n, D]`` as they are at ``positions`` int64 ``[B or 1, m]``, the mean over these."""
        cos, sin = (one.mean(dim=1, keepdim=True) for one in self._pure(positions))
        return self._apply(states.float(), cos, sin)

    def _pure(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine without the factor that some models have in both."""
        cos, sin = self._angles(positions)
        scaling = (cos.square() + sin.square()).sqrt()
        return cos / scaling, sin / scaling

    @classmethod
    def build(
        cls, policy: str, decoder: torch.nn.Module, attention: torch.nn.Module, index: int, config: Any
    ) -> Turning:
        """That of one layer; raises :class:`UnsupportedModelError`, naming ``policy``, where it is not exact."""
        family = type(attention).__name__
        rotary = getattr(decoder, "rotary_emb", None) or getattr(attention, "rotary_emb", None)
        namespace = vars(sys.modules[type(attention).__module__])
        rotate = namespace.get("apply_rotary_pos_emb")
        if rotary is None and rotate is None and not _mentions_rope(decoder, namespace):
            return cls(_no_angles, lambda states, cos, sin: states)
        table = getattr(rotary, "embed_positions", None)  # GPT-J's ends, and queries are turned ahead of the text
        if rotary is None or rotate is None or table is not None:
            raise UnsupportedModelError(
                f"policy {policy!r} undoes the queries' rotary embedding, which is not of the usual form in {family}; "
                'use another policy, such as "snapkv"'
            )
        kinds = getattr(rotary, "rope_type", "default")
        for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
            if kind in _REFUSED_TYPES:
                raise UnsupportedModelError(
                    f"policy {policy!r} undoes the queries' rotary embedding, and {kind!r} RoPE has frequencies that "
                    'change with the length; use another policy, such as "snapkv"'
                )
        angles = _angles_of(rotary, attention, index, config)
        for whole in (True, False):
            turning = cls(angles, _apply_of(rotate, whole))
            if turning._is_exact(attention):
                return turning
        raise UnsupportedModelError(
            f"policy {policy!r} cannot undo the rotary embedding of {family} exactly; use another policy, such as "
            '"snapkv"'
        )

    @torch.no_grad()
    def _is_exact(self, attention: torch.nn.Module) -> bool:
        device = execution_device(attention)
        generator = torch.Generator().manual_seed(0)
        try:
            states = torch.randn(1, 1, 3, _head_dim(attention), generator=generator).to(device)
            here = torch.tensor([[5, 1, 200]], device=device)
            turned = self._apply(states, *self._pure(here + 57))
            want = self._apply(states, *self._pure(torch.full_like(here, 57)))
            return bool((self.back(turned, here) - want).abs().max() < 1e-3)
        except (TypeError, RuntimeError, ValueError, AttributeError):
            return False


def _no_angles(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    one = torch.ones(1, 1, 1, device=positions.device)
    return one, torch.zeros_like(one)


def _mentions_rope(decoder: torch.nn.Module, namespace: dict[str, Any]) -> bool:
    names = [*namespace, *(type(module).__name__ for module in decoder.modules())]
    return any("rotary" in name.lower() for name in names)


def _angles_of(
    rotary: torch.nn.Module, attention: torch.nn.Module, index: int, config: Any
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Cosine and sine fp32 ``[B, n, *]`` at positions int64 ``[B, n]``."""
    more: dict[str, Any] = {}
    if "layer_type" in inspect.signature(type(rotary).forward).parameters:
        more["layer_type"] = getattr(attention, "layer_type", None) or config.layer_types[index]

    def angles(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = rotary(torch.zeros(1, device=positions.device), positions, **more)
        return cos.float(), sin.float()

    return angles


def _apply_of(rotate: Callable[..., Any], whole: bool) -> Apply:
    """``whole``: the model's function is given all of a head, else the part that has a cosine."""

    def apply(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        width = states.shape[-1] if whole else cos.shape[-1]
        part = states[..., :width]
        turned: torch.Tensor = rotate(part, part, cos, sin)[0]
        return turned if whole else torch.cat([turned, states[..., width:]], dim=-1)

    return apply
