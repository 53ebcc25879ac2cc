"""A few of a model's weights, by which a file that was made for it can tell it from others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

_WEIGHTS, _VALUES = 16, 8
#: Half precision moves a weight by less than this part of its size.
_CLOSE = 0.01


def sample_weights(model: nn.Module) -> tuple[float, ...]:
    """Up to 128 values, evenly spaced over the model's weights; of weights that are nowhere to be found, none."""
    weights = [pair for pair in model.named_parameters() if pair[1].is_floating_point() and pair[1].ndim > 1]
    found: list[float] = []
    for name, parameter in weights[:: max(1, len(weights) // _WEIGHTS)][:_WEIGHTS]:
        weight = parameter if parameter.device.type != "meta" else _offloaded(model, name)
        if weight is not None:
            flat = weight.detach().reshape(-1)
            picked = flat[:: max(1, flat.numel() // _VALUES)][:_VALUES]
            found += picked.to(dtype=torch.float32, device="cpu").tolist()
    return tuple(found)


def _offloaded(model: nn.Module, name: str) -> torch.Tensor | None:
    """A weight that accelerate keeps elsewhere (in memory, on disk) until its module runs."""
    owner, _, own = name.rpartition(".")
    hook = getattr(model.get_submodule(owner), "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):
        try:
            return torch.as_tensor((getattr(part, "weights_map", None) or {})[own])
        except KeyError:
            continue
    return None


def same_weights(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two samples are of the same weights, in whatever precision."""
    size = max((abs(value) for value in one), default=0.0)
    return len(one) == len(other) > 0 and all(
        math.isclose(a, b, rel_tol=_CLOSE, abs_tol=1e-4 * size) for a, b in zip(one, other, strict=True)
    )
