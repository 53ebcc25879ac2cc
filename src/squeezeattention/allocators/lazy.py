"""LightTransfer's budgets: the lazy half of the layers streams, the others share the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from ..plan.budget import is_real
from .base import Allocation, Allocator, check_signal_values


@dataclass(frozen=True)
class Lazy(Allocator):
    """LightTransfer (arXiv 2410.13846): the layers that read least outside sinks and recent tokens are cut short.

    The ``lazy`` share of layers with the highest values (half in the paper, rounded down) keep ``streaming``
    tokens, sinks and recent ones together, as far as a quarter of the average budget pays for them; all others get
    an equal part of what is left. The paper gives those the whole prompt, so its memory follows from it; here the
    total is given, and the lazy layers get more only once the others are full. Ties go against the later layer;
    if all layers are equally lazy the budgets are uniform. Use the streaming policy to be close to the paper.
    """

    name: ClassVar[str] = "lazy"
    needs_signal: ClassVar[bool] = True
    signal: ClassVar[str] = "streaming_mass"
    lazy: float = 0.5
    streaming: int = 68

    def __post_init__(self) -> None:
        if not is_real(self.lazy) or not 0 <= self.lazy < 1:
            raise ConfigError(f"lazy must be a share of the layers in [0, 1), got {self.lazy!r}")
        if isinstance(self.streaming, bool) or not isinstance(self.streaming, int) or self.streaming < 1:
            raise ConfigError(f"streaming must be a whole number of at least 1 token, got {self.streaming!r}")

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        values = check_signal_values(self.name, signal_values, n_layers)
        count = int(self.lazy * n_layers)
        if len(set(values)) == 1:
            return Allocation((1.0,) * n_layers, (1,) * n_layers, ("all layers are equally lazy: uniform budgets",))
        by_laziness = sorted(range(n_layers), key=lambda layer: (values[layer], layer), reverse=True)
        streams = set(by_laziness[:count])
        rest = n_layers / (n_layers - count)
        shares = tuple(0.0 if layer in streams else rest for layer in range(n_layers))
        groups = tuple(2 if layer in streams else 1 for layer in range(n_layers))
        return Allocation(shares, groups, floor=self.streaming)
