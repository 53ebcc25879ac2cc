"""What right answers look at, by layer and KV head, and what of it each way of cutting has evicted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .heads import head_map
from .plans import Part, stacked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..evaluation.needed import Kept, Why

#: Needed in blue, evicted in red, on one scale: a red cell was a blue one.
_NEEDED, _EVICTED = "Blues", "Reds"


def needed_figure(found: Why) -> Figure:
    """A heat map of layers and KV heads of what was needed, and below it for each way what of it is gone."""
    need, most = found.need, max(own for layer in found.need.heads for own in layer)
    count = max(map(len, need.heads))
    height = 0.35 + min(3.0, max(0.7, 0.26 * count))
    units = sum(map(len, need.heads))
    title = f"right answers look at {need.tokens} tokens: half of that in {len(need.leading())} of {units} KV heads"

    def draw(heads: list[list[float]], name: str, label: str, colours: str, figure: Figure, axes: Axes) -> None:
        head_map(figure, axes, heads, title=name, label=label, colours=colours, most=most)

    parts = [Part(height, partial(draw, need.heads, "needed: attention on the answers' tokens", "needed", _NEEDED))]
    for way in found.ways:
        if way.config.policy is not None:
            parts.append(Part(height, partial(draw, _gone(way, need.heads), _name(way), "evicted", _EVICTED)))
    figure, _ = stacked(parts, len(need.heads), title)
    return figure


def _gone(way: Kept, needed: list[list[float]]) -> list[list[float]]:
    return [
        [max(0.0, own - left) for own, left in zip(whole, held, strict=True)]
        for whole, held in zip(needed, way.heads, strict=True)
    ]


def _name(way: Kept) -> str:
    policy, allocator = way.config.policy, way.config.allocator
    return (
        f"{policy} / {allocator}, {way.bytes:.0%} of the bytes: {1 - way.share:.0%} of what was needed is evicted, "
        f"answers right {way.right:.0%}"
    )
