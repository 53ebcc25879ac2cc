"""How much two plans agree: in their groups, their signals, their budgets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby

from ..errors import ConfigError


def same_layers(first: Sequence[int], second: Sequence[int]) -> float:
    """Share of the layers that both put into the same group; groups go by their number (1 = most important).

    Raises :class:`ConfigError` unless both have one group for each of the same layers.
    """
    _check(first, second)
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def adjusted_rand(first: Sequence[int], second: Sequence[int]) -> float:
    """Adjusted Rand index of two groupings (Hubert and Arabie, 1985): 1 = the same, 0 = as by chance, or negative.

    What the groups are called does not count. Equal groupings give 1, even of one group only.
    Raises :class:`ConfigError` as :func:`same_layers` does.
    """
    _check(first, second)
    pairs = math.comb(len(first), 2)
    together = _pairs(Counter(zip(first, second, strict=True)).values())
    a, b = _pairs(Counter(first).values()), _pairs(Counter(second).values())
    room = pairs * (a + b) - 2 * a * b  # largest index minus the expected one, in whole numbers
    if room == 0:  # both have one group, or a group for each layer
        return 1.0
    return 2 * (pairs * together - a * b) / room


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation of two signals, -1 to 1; equal values share their mean rank.

    ``None`` where one of them has the same value everywhere: there is no order to compare.
    Raises :class:`ConfigError` as :func:`same_layers` does.
    """
    _check(first, second)
    a, b = (_double_ranks(tuple(values)) for values in (first, second))
    spread = sum(x * x for x in a) * sum(y * y for y in b)
    if spread == 0:
        return None
    return max(-1.0, min(1.0, sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(spread)))


def moved(first: Sequence[float], second: Sequence[float]) -> float:
    """Share of a cache's tokens that lie in other layers, 0 to 1: half the L1 distance of the budgets' shares.

    Budgets are in tokens and taken relative to their own total, so prompts of different lengths can be compared.
    Raises :class:`ConfigError` as :func:`same_layers` does, and for budgets that are no positive numbers.
    """
    _check(first, second)
    if not all(0 < budget < math.inf for budget in (*first, *second)):
        raise ConfigError("budgets must be positive numbers of tokens")
    a, b = sum(first), sum(second)
    return sum(abs(x / a - y / b) for x, y in zip(first, second, strict=True)) / 2


@lru_cache(maxsize=4096)  # a prompt is in many pairs
def _double_ranks(values: tuple[float, ...]) -> tuple[int, ...]:
    """Twice the rank of each value, minus what that is on average: whole numbers, so that nothing is rounded.

    Equal values get the mean of their ranks.
    """
    order = sorted(range(len(values)), key=lambda layer: values[layer])
    ranks = [0] * len(values)
    done = 0
    for _, group in groupby(order, key=lambda layer: values[layer]):
        layers = list(group)
        for layer in layers:
            ranks[layer] = 2 * done + len(layers) - len(values)
        done += len(layers)
    return tuple(ranks)


def _pairs(sizes: Iterable[int]) -> int:
    """Pairs of layers that are in one group, for groups of such sizes."""
    return sum(math.comb(size, 2) for size in sizes)


def _check(first: Sequence[float], second: Sequence[float]) -> None:
    if not first or len(first) != len(second):
        raise ConfigError(f"plans of the same layers are needed, got {len(first)} and {len(second)} layers")
