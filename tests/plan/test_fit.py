"""fit_budgets spends the total exactly, within floors and caps, in proportion."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from squeezeattention.errors import BudgetError, ConfigError
from squeezeattention.plan import fit_budgets
from squeezeattention.plan.fit import fit_heads, total_tokens

SHARE = st.one_of(st.sampled_from([0.0, 0.35, 1.0, 1.65]), st.floats(0, 10), st.floats(0, 1e300), st.just(5e-324))
CAP = st.one_of(st.none(), st.integers(1, 400))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], int, list[int | None], int]:
    n = draw(st.integers(1, 12))
    shares = draw(st.lists(SHARE, min_size=n, max_size=n))
    caps = draw(st.lists(CAP, min_size=n, max_size=n))
    return shares, draw(st.integers(1, 300)), caps, draw(st.integers(1, 40))


@settings(max_examples=4000, deadline=None)
@given(problems())
def test_invariants(problem: tuple[list[float], int, list[int | None], int]) -> None:
    shares, base, caps, floor = problem
    total = min(len(shares) * base, sum(math.inf if cap is None else cap for cap in caps))
    floors = [floor if cap is None else min(floor, cap) for cap in caps]
    if total < sum(floors):
        with pytest.raises(BudgetError, match="too small"):
            fit_budgets(shares, base, caps, floor)
        return
    budgets = fit_budgets(shares, base, caps, floor)
    assert sum(budgets) == total
    layers = list(zip(shares, budgets, floors, caps, strict=True))
    for share, budget, low, cap in layers:
        assert low <= budget
        assert cap is None or budget <= cap
        for other_share, other, _, other_cap in layers:
            if share >= other_share and cap == other_cap:
                assert budget >= other - 1
            # a layer without a share takes a surplus only when every layer with one is full
            if share == 0 and budget > low and other_share > 0:
                assert other == other_cap


@settings(max_examples=500, deadline=None)
@given(st.floats(1e-300, 1e300), st.integers(1, 200), st.integers(1, 10**9), st.booleans())
def test_equal_shares_are_exactly_uniform(share: float, n: int, base: int, capped: bool) -> None:
    assert fit_budgets([share] * n, base, [base if capped else None] * n, 1) == [base] * n


@settings(max_examples=500, deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.integers(1, 300), st.integers(-60, 60))
def test_only_relative_shares_count(shares: list[float], base: int, exponent: int) -> None:
    scaled = [math.ldexp(share, exponent) for share in shares]
    caps = [None] * len(shares)
    assume(all(scaled))
    assert fit_budgets(scaled, base, caps, 1) == fit_budgets(shares, base, caps, 1)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=12))
def test_whole_shares_are_met_exactly(budgets: list[int]) -> None:
    assume(sum(budgets) % len(budgets) == 0)
    base = sum(budgets) // len(budgets)
    shares = [budget / base for budget in budgets]
    assert fit_budgets(shares, base, [None] * len(budgets), 1) == budgets


@pytest.mark.parametrize(
    ("shares", "base", "caps", "floor", "expected"),
    [
        ([1, 1, 1], 10, [None] * 3, 1, [10, 10, 10]),
        ([1, 3], 10, [None] * 2, 1, [5, 15]),
        ([1, 3], 10, [None, 12], 1, [8, 12]),  # the surplus of a capped layer flows back
        ([1, 99], 10, [None] * 2, 4, [4, 16]),  # a floor is paid by the others
        ([0, 1], 10, [None] * 2, 2, [2, 18]),
        ([0, 0, 1], 10, [None, None, 5], 2, [13, 12, 5]),  # no share: only what the others cannot use
        ([0, 0], 7, [None] * 2, 1, [7, 7]),
        ([1, 1], 10, [3, 4], 5, [3, 4]),  # nothing is left to evict
        ([1, 1, 2], 5, [None] * 3, 1, [4, 4, 7]),
        ([2, 3, 5], 1, [None] * 3, 1, [1, 1, 1]),
    ],
)
def test_examples(shares: list[float], base: int, caps: list[int | None], floor: int, expected: list[int]) -> None:
    assert fit_budgets(shares, base, caps, floor) == expected


@pytest.mark.parametrize(
    ("shares", "base", "caps", "floor", "error"),
    [
        ([1, 1], 3, [None, None], 4, BudgetError),
        ([1, 1], 0, [None, None], 1, BudgetError),
        ([1, 1], 5, [None, None], 0, BudgetError),
        ([1, 1], 5, [None, 0], 1, BudgetError),
        ([], 5, [], 1, ConfigError),
        ([1], 5, [None, None], 1, ConfigError),
        ([1, -0.1], 5, [None, None], 1, ConfigError),
        ([1, math.nan], 5, [None, None], 1, ConfigError),
        ([1, math.inf], 5, [None, None], 1, ConfigError),
    ],
)
def test_refuses(shares: list[float], base: int, caps: list[int | None], floor: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        fit_budgets(shares, base, caps, floor)


def test_a_floor_above_the_budget_works_where_caps_allow() -> None:
    assert fit_budgets([1, 1], 5, [2, None], 8) == [2, 8]


def test_heads():
    """Sums, floors and caps of random layers with different numbers of heads; a larger share is not worth less."""
    rng = random.Random(0)
    for _ in range(3_000):
        counts = [rng.randint(1, 6) for _ in range(rng.randint(1, 8))]
        base, floor = rng.randint(3, 400), rng.randint(1, 3)
        caps = [rng.choice([None, rng.randint(1, 500)]) for _ in counts]
        shares = [[rng.choice([0, 1, rng.random() ** 3]) for _ in range(count)] for count in counts]
        budgets, heads = fit_heads(shares, base, caps, floor)
        assert sum(budgets) == total_tokens(base, caps)
        for budget, own, wanted, cap in zip(budgets, heads, shares, caps, strict=True):
            assert sum(own) == budget * len(own)
            assert all(min(floor, cap or floor) <= tokens <= (cap or tokens) for tokens in own)
            for one, more in itertools.combinations(range(len(own)), 2):
                low, high = sorted((one, more), key=wanted.__getitem__)
                assert own[low] <= own[high] + 1 or wanted[low] == wanted[high]


def test_one_head_a_layer_is_a_layer():
    rng = random.Random(1)
    for _ in range(300):
        shares = [rng.random() for _ in range(rng.randint(1, 9))]
        caps = [rng.choice([None, rng.randint(20, 90)]) for _ in shares]
        alone = fit_budgets(shares, 40, caps, 4)
        budgets, heads = fit_heads([[share] for share in shares], 40, caps, 4)
        assert heads == [[budget] for budget in budgets]
        assert max(abs(a - b) for a, b in zip(alone, budgets, strict=True)) <= 1


def test_heads_that_cannot_be_paid():
    with pytest.raises(BudgetError, match="too small"):
        fit_heads([[1.0, 2.0]], 3, [None], 4)
    with pytest.raises(ConfigError):
        fit_heads([[1.0], []], 3, [None, None])
