"""The paper's rule: group the layers by their signal, cut the least important group."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..errors import ConfigError
from ..plan.kmeans import kmeans_1d
from .base import Allocation, Allocator, check_p, check_signal_values

OUTLIERS = ("keep", "clamp")


@dataclass(frozen=True)
class Squeeze(Allocator):
    """SqueezeAttention (arXiv 2404.04793, Algorithm 1): K-Means on the layers' signal.

    The layers of the last group (highest values: attention changes little there) keep ``p`` of the average
    budget; all others receive an equal part of what is left. The total stays the same; ``p = 1`` is uniform.

    ``groups`` is the paper's k = 3. ``outliers="keep"`` is the published rule. It lets one or two extreme
    layers fill the important groups by themselves, which cuts all others: the plan warns. ``"clamp"`` first
    raises values below Tukey's lower fence, Q1 - 1.5 IQR, to the smallest value inside it. Values without
    ``groups`` distinct levels give uniform shares and a warning.
    """

    name: ClassVar[str] = "squeeze"
    needs_signal: ClassVar[bool] = True
    p: float = 0.35
    groups: int = 3
    outliers: Literal["keep", "clamp"] = "keep"

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", check_p(self.p))
        if isinstance(self.groups, bool) or not isinstance(self.groups, int) or self.groups < 2:
            raise ConfigError(f"groups must be a whole number >= 2 (3 in the paper), got {self.groups!r}")
        check_outliers(self.outliers)

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        values = check_signal_values(self.name, signal_values, n_layers)
        warnings = []
        if self.outliers == "clamp" and (clamped := outlier_layers(values)):
            fence = min(value for layer, value in enumerate(values) if layer not in clamped)
            values = [max(value, fence) for value in values]
            warnings.append(f"clamped the outliers of the signal to {fence:.4g}: {_layers(clamped)}")
        found = [group + 1 for group in kmeans_1d(values, self.groups)]
        if max(found) == 1:
            warnings.append(f"the signal does not form {self.groups} groups of layers: uniform budgets")
            return Allocation((1.0,) * n_layers, (1,) * n_layers, tuple(warnings))
        if self.p < 1 and (warning := self._capture_warning(found)):
            warnings.append(warning)
        assigned = self._assign(found, values)
        return Allocation(self._shares(assigned), tuple(assigned), tuple(warnings))

    def _assign(self, groups: list[int], values: list[float]) -> list[int]:
        """The layers' groups, as found. Control allocators override this: other layers, the same sizes."""
        return groups

    def _shares(self, groups: list[int]) -> tuple[float, ...]:
        n, cut = len(groups), groups.count(self.groups)
        rest = (n - cut * self.p) / (n - cut)
        return tuple(self.p if group == self.groups else rest for group in groups)

    def _capture_warning(self, groups: list[int]) -> str | None:
        """Text when the important groups together hold so few layers that outliers must have taken them."""
        n = len(groups)
        important = [layer for layer, group in enumerate(groups) if group < self.groups]
        if n < 6 or len(important) > max(2, n // 8):
            return None
        sizes = ", ".join(f"G{g} {groups.count(g)}" for g in range(1, self.groups + 1))
        guard = '; outliers="clamp" guards against this' if self.outliers == "keep" else ""
        return (
            f"outliers of the signal took the important groups: {_layers(important)} of {n} fill all but the "
            f"last (group sizes {sizes}), so every other layer keeps only {self.p:g} of the average{guard}"
        )


def check_outliers(outliers: object) -> None:
    """:class:`ConfigError` unless "keep" or "clamp"."""
    if outliers not in OUTLIERS:
        raise ConfigError(f'outliers must be "keep" (as published) or "clamp", got {outliers!r}')


def outlier_layers(values: list[float]) -> list[int]:
    """Layers below Tukey's lower fence (quartiles by linear interpolation); none among fewer than 4."""
    if len(values) < 4:
        return []
    q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return [layer for layer, value in enumerate(values) if value < q1 - 1.5 * (q3 - q1)]


def _layers(layers: list[int]) -> str:
    return f"layer{'s' if len(layers) != 1 else ''} {', '.join(map(str, layers))}"
