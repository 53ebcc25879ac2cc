"""Decode steps for a compiler: buffers that stay where they are, and all that changes from step to step in tensors.

::

    host, outside of the graph              device, inside
    Step.start, SqueezeLayer.seen  ------>  position of each row's token, columns seen (one add a step)
    is a layer full? (changes once) ----->  keys, values, positions, scores: all columns of the budget, used or not,
                                            in blocks (blocks.py) if the policy lets tokens be found there
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .planning import ENDLESS

if TYPE_CHECKING:
    from .layer import SqueezeLayer
    from .step import Step


#: Columns that a text without an end is given, at least, when it needs more.
_GROWTH = 256


class StaticDecode:
    """The tensors that tell a compiled step where the text is, on each device that has layers."""

    def __init__(self) -> None:
        self._positions: dict[torch.device, torch.Tensor] = {}
        self._seen: dict[torch.device, torch.Tensor] = {}
        self._room: int | None = None  # tokens of a row that the buffers have room for; ``None``: no end

    def clear(self) -> None:
        """The layers' buffers are about to change: the next step starts anew."""
        self._positions, self._seen = {}, {}
        self._room = None

    def enter(self, step: Step, layers: list[SqueezeLayer], expected: int | None = None) -> None:
        """Make a decode step one that a compiler can take; the first one gives all layers buffers that stay.

        ``expected``: tokens of the longest row when the answer is over, if that is known. Layers need no more columns
        than that; a text that goes beyond gets all columns of the budget.
        """
        newest = max(step.start)
        if self._room is not None and newest >= self._room:
            self.clear()
        if not self._positions:
            room = expected if expected is not None and expected > newest else None
            if room is None and any(layer.budget == ENDLESS for layer in layers):
                room = newest + max(_GROWTH, newest // 2)
            self._room = room
            for device in {layer.device for layer in layers}:
                self._positions[device] = torch.tensor(step.start, device=device)[:, None]
                self._seen[device] = torch.tensor(layers[0].seen, device=device)
            for layer in layers:
                layer.settle(len(step.start), room)
        for layer in layers:
            if not layer.is_settled:  # somebody has looked at it meanwhile
                layer.settle(len(step.start), self._room)
            layer.note_full(step)
        step.static = True
        step.share(self._positions, self._seen)

    def leave(self, layers: list[SqueezeLayer]) -> None:
        """The step is over."""
        for tensor in (*self._positions.values(), *self._seen.values()):
            tensor.add_(1)
        for layer in layers:
            layer.seen += 1
