"""kmeans_1d against every way to cut the sorted values into groups."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squeezeattention.errors import ConfigError
from squeezeattention.plan import kmeans_1d

COSINES = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=9)
FEW_LEVELS = st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.35, 0.9, 1.0]), min_size=1, max_size=9)


def scatter(groups: list[list[float]]) -> float:
    total = 0.0
    for group in groups:
        mean = math.fsum(group) / len(group)
        total += math.fsum((value - mean) ** 2 for value in group)
    return total


def brute_force(values: list[float], k: int) -> float:
    ordered = sorted(values)
    cuts = itertools.combinations(range(1, len(ordered)), k - 1)
    return min(scatter([ordered[a:b] for a, b in itertools.pairwise((0, *cut, len(ordered)))]) for cut in cuts)


def members(values: list[float], labels: list[int]) -> list[list[float]]:
    return [[v for v, g in zip(values, labels, strict=True) if g == group] for group in range(max(labels) + 1)]


@settings(max_examples=1500, deadline=None)
@given(st.one_of(COSINES, FEW_LEVELS), st.integers(1, 4))
def test_is_optimal_ordered_and_keeps_ties_together(values: list[float], k: int) -> None:
    labels = kmeans_1d(values, k)
    if len(set(values)) < k or max(values) - min(values) < 1e-6:
        assert labels == [0] * len(values)
        return
    groups = members(values, labels)
    assert len(groups) == k
    assert all(groups)
    assert scatter(groups) <= brute_force(values, k) + 1e-12
    assert all(max(low) < min(high) for low, high in itertools.pairwise(groups))  # ordered; ties together


@settings(max_examples=500, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_follows_a_permutation(values: list[float], rng: random.Random) -> None:
    order = rng.sample(range(len(values)), len(values))
    labels = kmeans_1d(values, 3)
    assert kmeans_1d([values[i] for i in order], 3) == [labels[i] for i in order]


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e9])
def test_an_offset_does_not_cancel(offset: float) -> None:
    values = [offset + x for x in (0.0, 1.0, 2.0, 50.0, 51.0, 52.0, 90.0, 91.0)]
    assert kmeans_1d(values, 3) == [0, 0, 0, 1, 1, 1, 2, 2]


def test_extreme_magnitudes_do_not_overflow() -> None:
    assert kmeans_1d([-1.7e308, 1.7e308, 0.0], 3) == [0, 2, 1]


@pytest.mark.parametrize(
    ("values", "k"),
    [([], 3), ([0.5], 3), ([0.1, 0.2], 3), ([0.9, 0.9 + 1e-7, 0.9 + 2e-7], 3), ([1.0, 2.0], 1)],
)
def test_no_groups_to_find(values: list[float], k: int) -> None:
    assert kmeans_1d(values, k) == [0] * len(values)


@pytest.mark.parametrize(("values", "k"), [([0.1, math.nan], 2), ([math.inf, 0.0], 2), ([0.1, 0.2], 0)])
def test_refuses(values: list[float], k: int) -> None:
    with pytest.raises(ConfigError):
        kmeans_1d(values, k)
