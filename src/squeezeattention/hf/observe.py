"""Hooks that feed a signal while a prompt is read, and only then."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..cache.step import ACTIVE, Step
from ..signals import Signal
from .layout import Layout
from .residual import ResidualSpot, first_tensor, output_tensor


def observe_hidden(step: Step, signal: Signal, layout: Layout, spots: tuple[ResidualSpot, ...]) -> list[Any]:
    """Install the hooks of one forward pass; returns their handles."""
    handles: list[Any] = []
    for index, (layer, attention, spot) in enumerate(zip(layout.layers, layout.attentions, spots, strict=True)):
        observer = _LayerObserver(step, signal, index, spot)
        handles.append(layer.register_forward_pre_hook(observer.layer_begins, with_kwargs=True))
        if spot.child is None:
            handles.append(attention.register_forward_hook(observer.attention_ends))
        else:
            child = layer.get_submodule(spot.child)
            handles.append(child.register_forward_pre_hook(observer.child_begins, with_kwargs=True))
    return handles


class _LayerObserver:
    """Holds a layer's input until its attention has been added."""

    def __init__(self, step: Step, signal: Signal, index: int, spot: ResidualSpot) -> None:
        self.step, self.signal, self.index, self.spot = step, signal, index, spot
        self.before: torch.Tensor | None = None

    def _is_ours(self) -> bool:
        return ACTIVE.step is self.step

    def layer_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_ours():
            self.before = first_tensor(args, kwargs)

    def child_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        after = first_tensor(args, kwargs)
        if self.before is not None and after is not None and self._is_ours():
            self._report(after.reshape(self.before.shape))

    def attention_ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.before is not None and self._is_ours():
            self._report(self.before + self.spot.scale * output_tensor(output).to(self.before.device))

    def _report(self, after: torch.Tensor) -> None:
        if self.before is None:
            return
        self.signal.see_hidden(self.index, self.before.detach(), after.detach(), self.step.real)
        self.before = None
