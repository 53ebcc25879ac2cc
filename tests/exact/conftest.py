"""Which cases of the matrix run by default."""

from __future__ import annotations

import pytest

from squeezeattention.allocators import ALLOCATORS
from squeezeattention.testing import FAMILIES

POLICIES = ("sliding_window", "streaming_llm", "h2o")
SHARE = 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark three cases of four ``matrix``: ``make test`` leaves those to ``make test-matrix``.

    What stays is the default allocator everywhere, and each other one with each policy and with each family.
    """
    families, allocators = list(FAMILIES), ALLOCATORS.names()
    for item in items:
        if getattr(item, "originalname", "") != "test_small_budgets_equal_the_reference":
            continue
        case = item.callspec.params  # type: ignore[attr-defined]
        turn = (
            families.index(case["family"]) + POLICIES.index(case["policy"]) + allocators.index(case["allocator"])
        ) % SHARE
        if turn and case["allocator"] != "squeeze":
            item.add_marker(pytest.mark.matrix)
