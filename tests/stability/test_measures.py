"""Agreement of two plans, by hand and by what must hold of any."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squeezeattention.errors import ConfigError
from squeezeattention.stability import adjusted_rand, moved, same_layers, spearman

N = st.shared(st.integers(1, 12), key="layers")
GROUPS = N.flatmap(lambda n: st.lists(st.integers(1, 4), min_size=n, max_size=n))
SIGNAL = N.flatmap(lambda n: st.lists(st.integers(-5, 5).map(lambda x: x / 4), min_size=n, max_size=n))
BUDGETS = N.flatmap(lambda n: st.lists(st.integers(1, 500), min_size=n, max_size=n))


def test_same_layers_by_hand() -> None:
    assert same_layers([1, 2, 3, 3], [1, 3, 3, 3]) == 0.75
    assert same_layers([1, 1], [2, 2]) == 0.0  # the number of a group counts


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 1, 2, 2], [2, 2, 1, 1], 1.0),  # names do not count
        ([1, 1, 2, 2], [1, 1, 2, 3], 4 / 7),  # index 1, expected 2 * 1 / 6, most 1.5
        ([1, 1, 2, 2], [1, 2, 1, 2], -0.5),  # index 0, expected 2 * 2 / 6, most 2
        ([1, 1, 1, 1], [1, 1, 2, 2], 0.0),
        ([1, 1, 1], [3, 3, 3], 1.0),
        ([1, 2, 3], [3, 2, 1], 1.0),
        ([1], [2], 1.0),
    ],
)
def test_adjusted_rand_by_hand(first: list[int], second: list[int], expected: float) -> None:
    assert adjusted_rand(first, second) == pytest.approx(expected)


@given(GROUPS, GROUPS)
def test_adjusted_rand_counts_pairs_of_layers(first: list[int], second: list[int]) -> None:
    """The definition: pairs that are together in both, against what chance gives, pair by pair."""
    pairs = list(itertools.combinations(range(len(first)), 2))
    together = [{pair for pair in pairs if groups[pair[0]] == groups[pair[1]]} for groups in (first, second)]
    found = adjusted_rand(first, second)
    if together[0] == together[1]:
        assert found == 1.0
    else:
        expected = len(together[0]) * len(together[1]) / len(pairs)
        most = (len(together[0]) + len(together[1])) / 2
        assert found == pytest.approx((len(together[0] & together[1]) - expected) / (most - expected))
    assert found == adjusted_rand(second, first)
    assert found <= 1


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0.1, 0.2, 0.3], [0.5, 0.6, 9.0], 1.0),
        ([0.1, 0.2, 0.3], [3.0, 2.0, 1.0], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 * 4 / (5 * 24)
        ([1, 2, 2, 3], [1, 2, 3, 4], 3 / math.sqrt(10)),  # ranks 1, 2.5, 2.5, 4
        ([1, 1, 1], [1, 2, 3], None),
        ([1], [2], None),
    ],
)
def test_spearman_by_hand(first: list[float], second: list[float], expected: float | None) -> None:
    found = spearman(first, second)
    assert found is None if expected is None else found == pytest.approx(expected)


@given(SIGNAL, SIGNAL)
def test_spearman_knows_order_alone(first: list[float], second: list[float]) -> None:
    found = spearman(first, second)
    assert found == spearman(second, first)
    assert found == spearman([math.exp(x) for x in first], [x**3 for x in second])
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
        return
    assert found is not None
    assert -1 <= found <= 1
    assert spearman(first, first) == 1.0
    assert spearman(first, [-x for x in second]) == pytest.approx(-found)


def test_moved_by_hand() -> None:
    assert moved([10, 30], [30, 10]) == 0.5
    assert moved([10, 30], [100, 300]) == 0.0  # another total, divided alike
    assert moved([1, 1, 2], [2, 1, 1]) == 0.25


@given(BUDGETS, BUDGETS, BUDGETS)
def test_moved_is_a_distance(a: list[int], b: list[int], c: list[int]) -> None:
    assert moved(a, a) == 0
    assert moved(a, b) == moved(b, a)
    assert 0 <= moved(a, b) < 1
    assert moved(a, c) <= moved(a, b) + moved(b, c) + 1e-12
    assert moved(a, [7 * x for x in a]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("measure", [same_layers, adjusted_rand, spearman, moved])
def test_layers_must_be_the_same(measure: object) -> None:
    assert callable(measure)
    for first, second in (([], []), ([1, 2], [1, 2, 3])):
        with pytest.raises(ConfigError, match="layers"):
            measure(first, second)
    with pytest.raises(ConfigError, match="positive"):
        moved([0, 1], [1, 1])
