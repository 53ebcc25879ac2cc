"""Finds what scorers use of each layer's attention module: its output projection and its rotary embedding."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from ..attention.turning import Turning
from ..cache.parts import Parts
from ..errors import CacheStateError, UnsupportedModelError
from ..policies import EvictionPolicy, Scored
from .layout import Layout, kv_shape

#: What families call it.
_OUTPUTS = ("o_proj", "dense", "out_proj", "c_proj", "wo")


class OutputProjection:
    """A layer's output projection, held weakly."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)

    def __call__(self) -> torch.Tensor:
        """[Hq * Dv, W]: all query heads' side by side."""
        module = self._module()
        if module is None:
            raise CacheStateError("the model of this cache is gone")
        return inwards(module)

    def __deepcopy__(self, memo: dict[int, Any]) -> OutputProjection:
        return self


def inwards(module: nn.Module) -> torch.Tensor:
    """A linear layer's weight, [in, out]."""
    plain: Any = getattr(module, "base_layer", module)  # inside an adapter, whose own part is left out
    weight: torch.Tensor = plain.weight
    return weight if type(plain).__name__ == "Conv1D" else weight.T


def parts_for(policy: EvictionPolicy, layout: Layout) -> list[Parts]:
    """Each layer's, as far as ``policy`` asks for them; raises :class:`UnsupportedModelError` where one has none."""
    if not isinstance(policy, Scored) or not (policy.weighs_values or policy.foresees_queries):
        return [Parts()] * layout.n_layers
    if getattr(layout.config, "kv_lora_rank", None):
        raise UnsupportedModelError(
            f"policy {policy.name!r} looks at each head's keys and values, and {layout.config.model_type} caches one "
            'latent for all (MLA); use "snapkv", "kvzip" or "h2o"'
        )
    found = []
    for index, attention in enumerate(layout.attentions):
        output = find_output(policy.name, attention, layout.config, index) if policy.weighs_values else None
        turning = None
        if policy.foresees_queries:
            turning = Turning.build(policy.name, layout.decoder, attention, index, layout.config)
        found.append(Parts(output, turning))
    return found


def find_output(policy: str, attention: nn.Module, config: Any, layer: int | None = None) -> OutputProjection:
    """The projection of all heads' outputs; raises :class:`UnsupportedModelError` where it cannot be read."""
    family = type(attention).__name__
    width = int(config.num_attention_heads) * kv_shape(config, layer)[1]
    for name in _OUTPUTS:
        module = getattr(attention, name, None)
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Module) or not isinstance(weight, torch.Tensor):
            continue
        if weight.is_floating_point() and not weight.is_meta and weight.ndim == 2 and len(inwards(module)) == width:
            return OutputProjection(module)
        raise UnsupportedModelError(
            f"policy {policy!r} weighs values by {family}.{name}, whose weight {list(weight.shape)} ({weight.dtype}"
            f"{', not in memory' if weight.is_meta else ''}) is no plain matrix of {width} rows; use another policy, "
            'such as "snapkv"'
        )
    raise UnsupportedModelError(
        f"policy {policy!r} weighs values by the layer's output projection, and {family} has none of "
        f'{", ".join(_OUTPUTS)}; use another policy, such as "snapkv"'
    )
