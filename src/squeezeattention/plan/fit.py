"""From relative shares to whole token budgets that add up exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

from ..errors import BudgetError, ConfigError

#: Fractions where layers are few and nothing may drift, floats where heads are many.
_Number = TypeVar("_Number", Fraction, float)
#: Slopes of floats that should be none are a little off.
_NO_SLOPE = 1e-9


def total_tokens(base_budget: int, caps: Sequence[int | None]) -> int:
    """Tokens that the layers hold together: ``n * base_budget``, or all they can use where that is less."""
    total = len(caps) * base_budget
    limits = [cap for cap in caps if cap is not None]
    return min(total, sum(limits)) if len(limits) == len(caps) else total


def fit_budgets(shares: Sequence[float], base_budget: int, caps: Sequence[int | None], floor: int = 1) -> list[int]:
    """Budget of every layer in tokens, in proportion to ``shares``, within floors and caps.

    ``base_budget`` is the average per layer; ``caps[i]`` the most that layer i can use (None: no limit); the
    floor of a layer is ``min(floor, cap)``. The sum is ``total_tokens(base_budget, caps)`` exactly.

    Water-filling: budget_i = clip(level * share_i, floor_i, cap_i) with the one level that spends the total,
    then largest-remainder rounding, ties to the lowest layer. Computed in fractions, so nothing drifts: equal
    shares give equal budgets, and a larger share never ends more than one token below a smaller one of the
    same cap. A layer without a share keeps its floor, and takes more only once all others are full.

    Raises :class:`BudgetError` when the total cannot pay for the floors, :class:`ConfigError` for bad shares.
    """
    _check_arguments(shares, base_budget, caps, floor)
    floors = [floor if cap is None else min(floor, cap) for cap in caps]
    total = total_tokens(base_budget, caps)
    if total < sum(floors):
        raise _too_small(base_budget, len(caps), total, floors, floor)
    return _round(_water_fill([Fraction(share) for share in shares], total, floors, caps), total)


def _too_small(base_budget: int, layers: int, total: int, floors: list[int], floor: int) -> BudgetError:
    return BudgetError(
        f"a budget of {base_budget} tokens per layer is too small: {layers} layers hold {total} "
        f"tokens, but need at least {sum(floors)} ({floor} per layer); use a budget of {floor} or more"
    )


def _check_arguments(shares: Sequence[float], base_budget: int, caps: Sequence[int | None], floor: int) -> None:
    if not shares or len(shares) != len(caps):
        raise ConfigError(f"need one share and one cap per layer, got {len(shares)} and {len(caps)}")
    for layer, share in enumerate(shares):
        if not (math.isfinite(share) and share >= 0):
            raise ConfigError(f"shares must be finite and not negative; layer {layer} has {share}")
    if base_budget < 1 or floor < 1:
        raise BudgetError(f"budget and floor must be at least 1 token, got {base_budget} and {floor}")
    for layer, cap in enumerate(caps):
        if cap is not None and cap < 1:
            raise BudgetError(f"a layer must have room for 1 token; layer {layer} has a cap of {cap}")


def _water_fill(
    weights: Sequence[_Number],
    total: int,
    floors: Sequence[int],
    caps: Sequence[int | None],
    parts: Sequence[_Number] | None = None,
) -> list[_Number]:
    """Real-valued budgets whose sum, each counted as its part, is ``total``; floors and caps must allow it."""
    parts = [weight * 0 + 1 for weight in weights] if parts is None else parts
    # with a share: its cap; without: its floor; None: no limit
    reach = [cap if weight else low for weight, low, cap in zip(weights, floors, caps, strict=True)]
    limits = [limit for limit in reach if limit is not None]
    if len(limits) == len(reach) and sum(p * x for p, x in zip(parts, limits, strict=True)) < total:
        # all that have a share are full: pin those, the others divide the rest evenly
        weights = [weight * 0 if weight else weight + 1 for weight in weights]
        floors = limits
    level = _level(weights, total, floors, caps, parts)
    filled = []
    for weight, low, cap in zip(weights, floors, caps, strict=True):
        budget = max(level * weight, weight * 0 + low)
        filled.append(budget if cap is None else min(budget, weight * 0 + cap))
    return filled


def _level(
    weights: Sequence[_Number],
    total: int,
    floors: Sequence[int],
    caps: Sequence[int | None],
    parts: Sequence[_Number],
) -> _Number:
    """The level at which the sum of clip(level * weight, floor, cap), each counted as its part, reaches ``total``.

    That sum is ``slope * level + constant`` between breakpoints: a layer starts to grow where it leaves its
    floor and stops at its cap. Walk the breakpoints upwards to the piece that holds the total.
    """
    breakpoints: list[tuple[_Number, _Number, _Number]] = []  # level, change of slope, change of constant
    slope = constant = level = parts[0] * 0
    for part, weight, low, cap in zip(parts, weights, floors, caps, strict=True):
        constant += part * low
        if weight:
            breakpoints.append((low / weight, part * weight, -part * low))
            if cap is not None:
                breakpoints.append((cap / weight, -part * weight, part * cap))
    for level, more_slope, more_constant in sorted(breakpoints, key=lambda point: point[0]):
        if slope * level + constant >= total:
            break
        slope += more_slope
        constant += more_constant
    return (total - constant) / slope if slope > (_NO_SLOPE if isinstance(slope, float) else 0) else level


def _round(exact: list[Fraction], total: int) -> list[int]:
    """Largest remainder. Only fractional entries grow, and those lie below their (whole) caps."""
    budgets = [math.floor(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (budgets[i] - exact[i], i))
    for layer in by_remainder[: total - sum(budgets)]:
        budgets[layer] += 1
    return budgets


def fit_heads(
    shares: Sequence[Sequence[float]],
    base_budget: int,
    caps: Sequence[int | None],
    floor: int = 1,
) -> tuple[list[int], list[list[int]]]:
    """Budgets of every layer and of each of its KV heads, in proportion to ``shares[layer][head]``.

    As :func:`fit_budgets`, with a head where that has a layer: the floor and a layer's cap hold for each of its heads,
    and ``base_budget`` is the average of a head. A layer's budget is the mean of its heads, a whole number, and the
    layers' budgets sum to ``total_tokens(base_budget, caps)`` exactly.

    First all heads of all layers are filled, then each layer's mean is rounded, then its heads share that.
    """
    counts = [len(layer) for layer in shares]
    if not counts or min(counts) < 1:
        raise ConfigError("need shares of at least one KV head in every layer")
    flat = [float(share) for layer in shares for share in layer]
    spread = [cap for cap, count in zip(caps, counts, strict=True) for _ in range(count)]
    _check_arguments(flat, base_budget, spread, floor)
    total = total_tokens(base_budget, caps)
    floors = [floor if cap is None else min(floor, cap) for cap in caps]
    if total < sum(floors):
        raise _too_small(base_budget, len(caps), total, floors, floor)
    # Layers with more heads than others weigh more; what a layer holds is counted in tokens of its mean head.
    parts = [1 / count for count in counts for _ in range(count)]
    low = [floor if cap is None else min(floor, cap) for cap in spread]
    filled = iter(_water_fill(flat, total, low, spread, parts))
    reals = [[next(filled) for _ in range(count)] for count in counts]
    budgets = _whole([math.fsum(layer) / len(layer) for layer in reals], total, floors, caps)
    heads = []
    for layer, budget, cap, least in zip(reals, budgets, caps, floors, strict=True):
        own_floors, own_caps, own_total = [least] * len(layer), [cap] * len(layer), budget * len(layer)
        own = _water_fill(layer, own_total, own_floors, own_caps)
        heads.append(_whole(own, own_total, own_floors, own_caps))
    return budgets, heads


def _whole(exact: Sequence[float], total: int, floors: Sequence[int], caps: Sequence[int | None]) -> list[int]:
    """Whole numbers near ``exact`` that sum to ``total``: largest remainder within floors and caps."""
    limits = [math.inf if cap is None else cap for cap in caps]
    found = [
        int(min(limit, max(low, math.floor(x + 1e-9)))) for x, low, limit in zip(exact, floors, limits, strict=True)
    ]
    left = total - sum(found)
    order = sorted(range(len(found)), key=lambda i: (found[i] - exact[i], i))
    if left < 0:
        order.reverse()
    step = 1 if left > 0 else -1
    while left:
        moved = [i for i in order if floors[i] <= found[i] + step <= limits[i]][: abs(left)]
        for i in moved:
            found[i] += step
        left -= step * len(moved)
        if not moved:
            raise BudgetError(f"{total} tokens cannot be divided within the floors and caps of {len(found)} heads")
    return found
