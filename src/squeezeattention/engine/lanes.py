"""Which layers share a block table: vLLM gives every group of layers the same number of them, and pads.

Layers of equal blocks form a bucket. vLLM takes the smallest bucket's size for all groups, or the largest's if that is
less than half as large again, cuts the buckets into groups of that size and pads the last one. A bucket can be divided
beforehand by numbering its layers (*lanes*), which steers the size. Rule: ``_get_kv_cache_groups_uniform_page_size`` in
``vllm/v1/core/kv_cache_utils.py``; a test holds this file against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .blocks import LayerBlocks

#: Every group has a block table of its own, which costs time at each step; up to eight it is hardly seen.
MOST_GROUPS = 8


@dataclass(frozen=True)
class Lanes:
    """A lane for each layer, and what vLLM will make of it."""

    lanes: tuple[int, ...]
    group_size: int
    """Layers that share a block table."""
    groups: tuple[LayerBlocks, ...]
    """What each group keeps."""

    @property
    def n_groups(self) -> int:
        return len(self.groups)

    @property
    def blocks_per_sequence(self) -> int:
        """Blocks of the shared pool (each of ``group_size`` layers) that one long text holds."""
        return sum(group.total for group in self.groups)

    def waste(self, layers: Sequence[LayerBlocks]) -> float:
        """Share of that memory that belongs to no layer."""
        held = self.blocks_per_sequence * self.group_size
        return 1 - sum(layer.total for layer in layers) / held


def assign_lanes(layers: Sequence[LayerBlocks], most_groups: int = MOST_GROUPS) -> Lanes:
    """The division of equal layers that wastes least memory in at most ``most_groups`` groups (if any does)."""
    buckets: dict[LayerBlocks, list[int]] = {}
    for index, layer in enumerate(layers):
        buckets.setdefault(layer, []).append(index)
    sizes = [len(members) for members in buckets.values()]
    candidates = []
    for parts in _divisions(sizes, 2 * most_groups):
        lanes = [0] * len(layers)
        for members, count in zip(buckets.values(), parts, strict=True):
            for place, index in enumerate(members):
                lanes[index] = place % count
        candidates.append(_grouped(layers, tuple(lanes)))
    allowed = [found for found in candidates if found.n_groups <= most_groups]
    pool = allowed or [min(candidates, key=lambda found: found.n_groups)]
    return min(pool, key=lambda found: (found.blocks_per_sequence * found.group_size, found.n_groups))


def lanes_without_waste(layers: Sequence[LayerBlocks]) -> Lanes:
    """The same if it pads nothing; else a lane for each layer."""
    found = assign_lanes(layers)
    return lanes_of_all(layers) if found.waste(layers) else found


def lanes_of_all(layers: Sequence[LayerBlocks]) -> Lanes:
    """A lane for each layer, with a block table of its own."""
    return Lanes(tuple(range(len(layers))), 1, tuple(layers))


def _divisions(sizes: Sequence[int], most: int) -> Iterator[tuple[int, ...]]:
    """Numbers of parts of each bucket, at most ``most`` together; one part each if there are as many buckets."""
    if not sizes:
        yield ()
        return
    for count in range(1, max(1, min(sizes[0], most - len(sizes) + 1)) + 1):
        for rest in _divisions(sizes[1:], most - count):
            yield (count, *rest)


def _grouped(layers: Sequence[LayerBlocks], lanes: tuple[int, ...]) -> Lanes:
    """What vLLM makes of layers in these lanes."""
    sizes: dict[tuple[LayerBlocks, int], int] = {}
    for layer, lane in zip(layers, lanes, strict=True):
        sizes[layer, lane] = sizes.get((layer, lane), 0) + 1
    least, most = min(sizes.values()), max(sizes.values())
    group_size = most if most < 1.5 * least else least
    groups = [layer for (layer, _), size in sizes.items() for _ in range(-(-size // group_size))]
    return Lanes(lanes, group_size, tuple(groups))
