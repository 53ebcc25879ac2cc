"""What many plans say of each layer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squeezeattention.errors import ConfigError
from squeezeattention.stability import Spread, group_counts, spread, usual_groups
from squeezeattention.stability.layers import by_layer

ROWS = st.integers(1, 8).flatmap(
    lambda n: st.lists(st.lists(st.integers(1, 3), min_size=n, max_size=n), min_size=1, max_size=9)
)


def test_spread_by_hand() -> None:
    assert spread([2.0, 4.0, 9.0]) == Spread(5.0, pytest.approx(13**0.5), 2.0, 9.0)
    assert spread([0.3]) == Spread(0.3, 0.0, 0.3, 0.3)
    with pytest.raises(ConfigError, match="at least one"):
        spread([])


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20))
def test_a_mean_lies_in_its_range(values: list[float]) -> None:
    found = spread(values)
    assert found.low <= found.mean <= found.high
    assert 0 <= found.sd <= (found.high - found.low) + 1e-9


def test_groups_by_hand() -> None:
    rows = [[1, 2, 3], [1, 3, 3], [2, 3, 3], [2, 2, 3]]
    assert group_counts(rows) == ((2, 2, 0), (0, 2, 2), (0, 0, 4))
    assert usual_groups(rows) == (2, 3, 3)  # of several, the one that matters less
    assert group_counts([[1, 1]], 3) == ((1, 0, 0), (1, 0, 0))
    assert by_layer([[1, 5], [3, 5]])[0].mean == 2


@given(ROWS)
def test_every_prompt_is_counted_once(rows: list[list[int]]) -> None:
    assert all(sum(layer) == len(rows) for layer in group_counts(rows))
    usual = usual_groups(rows)
    assert usual_groups([list(usual)]) == usual
    for layer, group in enumerate(usual):
        seen = [row[layer] for row in rows]
        assert seen.count(group) == max(map(seen.count, seen))


@pytest.mark.parametrize("rows", [[], [[]], [[1, 2], [1]]])
def test_layers_must_be_the_same(rows: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="one model"):
        group_counts(rows)
