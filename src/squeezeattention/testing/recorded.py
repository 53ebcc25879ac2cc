"""What a cache kept, step by step, for a reference that is to attend to the same."""

from __future__ import annotations

from .. import SqueezeCache
from .reference import Choice


class Recorded:
    """The tokens that each row, layer and KV head of a cache held after the prompt and after every step.

    Where the choice of tokens is held against a twin of its own, this lets :class:`NaiveReference` check the rest:
    that attention sees exactly what is kept, that nothing comes back, that no budget is exceeded.
    """

    def __init__(self, cache: SqueezeCache) -> None:
        self._cache = cache
        self._kept: dict[tuple[int, int, int, int], set[int]] = {}

    def note(self) -> None:
        """To be called when a prompt has been cut and after each step."""
        for layer in range(len(self._cache.layers)):
            for row, heads in enumerate(self._cache.kept_positions(layer).tolist()):
                newest = max(map(max, heads))
                for head, kept in enumerate(heads):
                    self._kept[row, newest, layer, head] = {position for position in kept if position >= 0}

    def choice(self, row: int) -> Choice:
        """The choices of one row; ``AssertionError`` where one is none that a cache may make."""

        def choose(layer: int, head: int, held: set[int], budget: int, newest: int) -> set[int]:
            kept = self._kept[row, newest, layer, head]
            if not kept <= held or len(kept) > budget or newest not in kept:
                raise AssertionError(f"row {row}, layer {layer}, head {head} keeps {kept} of {held} at {budget} tokens")
            return set(kept)

        return choose
