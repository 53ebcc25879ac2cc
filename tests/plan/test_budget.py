"""Budget.parse: three units, every other value refused."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squeezeattention.errors import BudgetError
from squeezeattention.plan import Budget


class IntLike:
    """As integers of numpy behave: not an int, but usable as an index."""

    def __index__(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("given_value", "kind", "value"),
    [
        (1, "tokens", 1),
        (256, "tokens", 256),
        (IntLike(), "tokens", 7),
        ("256", "tokens", 256),
        (" 1 ", "tokens", 1),
        (0.2, "share", 0.2),
        (1.0, "share", 1.0),
        (Fraction(1, 4), "share", 0.25),
        ("0.2", "share", 0.2),
        (".5", "share", 0.5),
        ("1.0", "share", 1.0),
        ("20%", "share", 0.2),
        ("12.5 %", "share", 0.125),
        ("2048B", "bytes", 2048),
        ("800 kB", "bytes", 800_000),
        ("3MB", "bytes", 3_000_000),
        ("1.5GB", "bytes", 1_500_000_000),
        ("4KiB", "bytes", 4096),
        ("512MiB", "bytes", 512 * 2**20),
        ("0.5 gib", "bytes", 2**29),
        ("0.0015kB", "bytes", 1),
    ],
)
def test_accepts(given_value: object, kind: str, value: float) -> None:
    budget = Budget.parse(given_value)
    assert (budget.kind, budget.value) == (kind, value)
    assert Budget.parse(budget) is budget


REFUSED: list[Any] = [
    0,
    -1,
    1.5,
    0.0,
    -0.2,
    math.nan,
    math.inf,
    -math.inf,
    256.0,
    True,
    False,
    None,
    [3],
    b"3",
]
REFUSED += [
    1j,
    object(),
    "",
    "abc",
    "0",
    "-1",
    "1.5",
    "0%",
    "101%",
    "0MiB",
    "0.1B",
    "512M",
    "512 MiBs",
    "MiB",
]
REFUSED += ["1,000", "1_000", "1e3", "nan", "inf", "0x10", "5 5", "5%%", "1.2.3", "5 tokens", "9" * 5000, "٣"]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: repr(value)[:20])
def test_refuses_with_the_accepted_forms(value: object) -> None:
    with pytest.raises(BudgetError) as error:
        Budget.parse(value)
    for word in ("tokens per layer", "share of the prompt", "bytes per sequence"):
        assert word in str(error.value)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(), st.integers(), st.floats(), st.text("0123456789.% kKMGiBb", max_size=8)))
def test_any_value_is_a_budget_or_a_budget_error(value: object) -> None:
    try:
        budget = Budget.parse(value)
    except BudgetError:
        return
    assert budget.base_tokens(1000, 1) >= 1
    assert str(budget)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("tokens", 0), ("tokens", 1.5), ("tokens", True), ("share", 1.5), ("bytes", 0), ("words", 3)],
)
def test_the_constructor_checks_too(kind: Any, value: Any) -> None:
    with pytest.raises(BudgetError):
        Budget(kind, value)


@pytest.mark.parametrize(
    ("value", "prompt", "bytes_per_token", "tokens"),
    [
        (256, 100, 1024, 256),
        (0.2, 512, 1024, 102),  # 102.4
        (0.5, 5, 1024, 3),  # half up
        (0.001, 10, 1024, 1),
        (1.0, 512, 1024, 512),
        ("1MiB", 10_000, 1024, 1024),
        ("2047B", 10_000, 1024, 1),
    ],
)
def test_base_tokens(value: object, prompt: int, bytes_per_token: int, tokens: int) -> None:
    assert Budget.parse(value).base_tokens(prompt, bytes_per_token) == tokens


def test_too_few_bytes_say_how_many_would_do() -> None:
    with pytest.raises(BudgetError, match="at least 1024 bytes"):
        Budget.parse("1000B").base_tokens(100, 1024)
    with pytest.raises(BudgetError, match="bytes_per_token=0"):
        Budget.parse("1000B").base_tokens(100, 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1 token per layer"),
        (256, "256 tokens per layer"),
        (0.07, "7% of the prompt"),
        ("512MiB", "512 MiB"),
        ("1.5GB", "1500 MB"),
        ("1001B", "1001 bytes"),
    ],
)
def test_str(value: object, text: str) -> None:
    assert str(Budget.parse(value)) == text
