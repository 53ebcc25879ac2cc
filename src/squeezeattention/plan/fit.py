"""From relative shares to whole token budgets that add up exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from ..errors import BudgetError, ConfigError


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
        raise BudgetError(
            f"a budget of {base_budget} tokens per layer is too small: {len(caps)} layers hold {total} "
            f"tokens, but need at least {sum(floors)} ({floor} per layer); use a budget of {floor} or more"
        )
    return _round(_water_fill([Fraction(share) for share in shares], total, floors, caps), total)


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


def _water_fill(weights: list[Fraction], total: int, floors: list[int], caps: Sequence[int | None]) -> list[Fraction]:
    """Real-valued budgets of sum ``total``; needs sum(floors) <= total <= sum(caps)."""
    # with a share: its cap; without: its floor; None: no limit
    reach = [cap if weight else low for weight, low, cap in zip(weights, floors, caps, strict=True)]
    limits = [limit for limit in reach if limit is not None]
    if len(limits) == len(reach) and sum(limits) < total:
        # every layer with a share is full: pin those, the others divide the rest evenly
        weights = [Fraction(0 if weight else 1) for weight in weights]
        floors = limits
    level = _level(weights, total, floors, caps)
    filled = []
    for weight, low, cap in zip(weights, floors, caps, strict=True):
        budget = max(level * weight, Fraction(low))
        filled.append(budget if cap is None else min(budget, Fraction(cap)))
    return filled


def _level(weights: list[Fraction], total: int, floors: list[int], caps: Sequence[int | None]) -> Fraction:
    """The level at which sum(clip(level * weight, floor, cap)) reaches ``total``.

    That sum is ``slope * level + constant`` between breakpoints: a layer starts to grow where it leaves its
    floor and stops at its cap. Walk the breakpoints upwards to the piece that holds the total.
    """
    breakpoints: list[tuple[Fraction, Fraction, int]] = []  # level, change of slope, change of constant
    for weight, low, cap in zip(weights, floors, caps, strict=True):
        if weight:
            breakpoints.append((low / weight, weight, -low))
            if cap is not None:
                breakpoints.append((cap / weight, -weight, cap))
    slope, constant, level = Fraction(0), sum(floors), Fraction(0)
    for level, more_slope, more_constant in sorted(breakpoints, key=lambda point: point[0]):
        if slope * level + constant >= total:
            break
        slope += more_slope
        constant += more_constant
    return (total - constant) / slope if slope else level


def _round(exact: list[Fraction], total: int) -> list[int]:
    """Largest remainder. Only fractional entries grow, and those lie below their (whole) caps."""
    budgets = [math.floor(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (budgets[i] - exact[i], i))
    for layer in by_remainder[: total - sum(budgets)]:
        budgets[layer] += 1
    return budgets
