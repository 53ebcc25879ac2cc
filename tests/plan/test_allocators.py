"""Every allocator builds a plan that spends the same total; each rule does what its paper says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squeezeattention.allocators import (
    ALLOCATORS,
    DEFAULT_ALLOCATOR,
    Allocation,
    Allocator,
    Cake,
    DynamicKV,
    Fixed,
    Inverted,
    Lazy,
    Probe,
    Proportional,
    Pyramid,
    Random,
    Squeeze,
    Uniform,
    ZigZag,
    default_allocator,
    resolve_allocator,
    takes,
)
from squeezeattention.allocators.dynamickv import capped
from squeezeattention.defaults import DEFAULT_POLICY
from squeezeattention.errors import BudgetError, ConfigError, PlanError, UnknownNameError
from squeezeattention.plan import BudgetPlan, build_plan
from squeezeattention.policies import resolve_policy
from squeezeattention.testing import rules_for

NAMES = rules_for()
CUTTING = [Squeeze, Random, Inverted]
# a small model whose first two layers are outliers; layer 9 is the one that recalls
COSINES = [0.30, 0.88, 0.96, 0.985, 0.97, 0.975, 0.98, 0.965, 0.988, 0.99]
CLEAR = [0.50, 0.52, 0.51, 0.70, 0.72, 0.95, 0.96, 0.94, 0.97, 0.95, 0.96, 0.93]  # groups of 3, 2, 7


def plan_of(allocator: Allocator, signal_values: list[float] | None = None, **options: Any) -> BudgetPlan:
    values = CLEAR if signal_values is None else signal_values
    defaults = {"base_budget": 100, "caps": [None] * len(values), "floor": 1}
    return build_plan(allocator, signal_values=values, **{**defaults, **options})


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None)
@given(
    signal_values=st.lists(st.floats(-1, 1), min_size=1, max_size=24),
    base=st.integers(5, 2000),
    cap=st.none() | st.integers(1, 4000),
    p=st.floats(0.01, 1),
    outliers=st.sampled_from(["keep", "clamp"]),
)
def test_spends_the_total(
    name: str, signal_values: list[float], base: int, cap: int | None, p: float, outliers: str
) -> None:
    given = {option: value for option, value in (("p", p), ("outliers", outliers)) if takes(name, option)}
    allocator = resolve_allocator(name, **given)
    n = len(signal_values)
    plan = plan_of(allocator, signal_values, base_budget=base, caps=[cap] * n, floor=5)  # build_plan checks it
    assert plan.total == n * (base if cap is None else min(base, cap))
    assert plan == plan_of(allocator, signal_values, base_budget=base, caps=[cap] * n, floor=5)
    shares = allocator.allocate(signal_values, n).shares
    assert math.fsum(shares) == pytest.approx(n)


@pytest.mark.parametrize("allocator", CUTTING)
@pytest.mark.parametrize("base", [7, 100, 333])
@pytest.mark.parametrize("signal_values", [CLEAR, COSINES])
def test_p_1_is_exactly_uniform(allocator: type[Squeeze], base: int, signal_values: list[float]) -> None:
    cut = plan_of(allocator(p=1), signal_values, base_budget=base)
    assert cut.budgets == plan_of(Uniform(), signal_values, base_budget=base).budgets == (base,) * len(signal_values)
    assert allocator(p=1).allocate(signal_values, len(signal_values)).shares == (1.0,) * len(signal_values)
    assert cut.warnings == ()


def test_squeeze_is_the_published_rule() -> None:
    plan = plan_of(Squeeze(p=0.4))
    assert plan.groups == (1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3)
    assert plan.budgets == (184,) * 5 + (40,) * 7  # (12 - 7 * 0.4) / 5 = 1.84 of 100
    assert plan.warnings == ()
    assert (plan.allocator, plan.p, plan.signal_values) == ("squeeze", 0.4, tuple(CLEAR))


def test_outliers_are_kept_as_published_but_never_silently() -> None:
    plan = plan_of(Squeeze(), COSINES)
    assert plan.groups == (1, 2) + (3,) * 8
    assert plan.budgets == (360, 360) + (35,) * 8
    (warning,) = plan.warnings
    for part in ("layers 0, 1 of 10", "G1 1, G2 1, G3 8", 'outliers="clamp"'):
        assert part in warning


def test_clamp_takes_the_groups_back() -> None:
    plan = plan_of(Squeeze(outliers="clamp"), COSINES)
    assert plan.groups == (1, 1, 1, 3, 2, 2, 2, 1, 3, 3)
    assert plan.warnings == ("clamped the outliers of the signal to 0.96: layers 0, 1",)
    assert plan.signal_values == tuple(COSINES)  # the record shows what was measured


def test_clamp_changes_nothing_without_outliers() -> None:
    assert plan_of(Squeeze(outliers="clamp")) == plan_of(Squeeze())


@pytest.mark.parametrize("n", [6, 8, 32])
def test_a_single_outlier_group_warns(n: int) -> None:
    values = [0.1, 0.5] + [0.9 + 0.001 * i for i in range(n - 2)]
    assert len(plan_of(Squeeze(), values).warnings) == 1


@pytest.mark.parametrize("allocator", CUTTING)
@pytest.mark.parametrize("signal_values", [[0.9] * 8, [0.8, 0.9] * 4, [0.9, 0.8]])
def test_too_few_levels_are_uniform_with_a_warning(allocator: type[Squeeze], signal_values: list[float]) -> None:
    plan = plan_of(allocator(), signal_values)
    assert plan.budgets == (100,) * len(signal_values)
    assert set(plan.groups) == {1}
    assert "uniform" in plan.warnings[0]


@pytest.mark.parametrize("signal_values", [CLEAR, COSINES])
def test_controls_spend_the_same_budgets_on_other_layers(signal_values: list[float]) -> None:
    squeeze = plan_of(Squeeze(), signal_values)
    for control in (Random(), Random(seed=5), Inverted()):
        plan = plan_of(control, signal_values)
        assert sorted(plan.budgets) == sorted(squeeze.budgets)
        assert plan.group_sizes == squeeze.group_sizes
        assert plan.budgets != squeeze.budgets


def test_inverted_cuts_the_most_important_layers() -> None:
    groups = plan_of(Inverted(), COSINES).groups
    assert groups == (3, 3, 3, 3, 3, 3, 3, 3, 2, 1)


def test_random_depends_on_its_seed_alone() -> None:
    drawn = [plan_of(Random(seed=seed)).groups for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_pyramid_decreases_from_2_minus_1_20th() -> None:
    shares = Pyramid().allocate(None, 5).shares
    assert shares == pytest.approx((1.95, 1.475, 1.0, 0.525, 0.05))
    assert plan_of(Pyramid(beta=1)).budgets == plan_of(Uniform()).budgets
    assert Pyramid().allocate(None, 1).shares == (1.0,)


@pytest.mark.parametrize("p", [0, -0.1, 1.1, math.nan, math.inf, True, "0.3", None, 1j])
@pytest.mark.parametrize("allocator", CUTTING)
def test_p_out_of_range(allocator: type[Squeeze], p: Any) -> None:
    with pytest.raises(ConfigError, match="p must be"):
        allocator(p=p)


@pytest.mark.parametrize("options", [{"groups": 1}, {"groups": True}, {"groups": 2.5}, {"outliers": "drop"}])
def test_squeeze_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Squeeze(**options)


def test_other_options() -> None:
    for beta in (0.5, math.nan, math.inf, True, "20"):
        with pytest.raises(ConfigError, match="beta"):
            Pyramid(beta=beta)  # type: ignore[arg-type]
    for seed in (1.5, True, None):
        with pytest.raises(ConfigError, match="seed"):
            Random(seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_the_signal_is_checked_where_it_is_needed(name: str) -> None:
    allocator = ALLOCATORS.create(name)
    for signal_values in (None, [0.5, 0.6], [0.5, 0.6, math.nan]):
        if allocator.needs_signal:
            with pytest.raises(ConfigError):
                allocator.allocate(signal_values, 3)
        else:
            assert len(allocator.allocate(signal_values, 3).shares) == 3


# --- fixed budgets


def test_fixed_budgets_are_verbatim() -> None:
    plan = build_plan(
        Fixed([50, 3, 8]), signal_values=None, base_budget=999, caps=[20, 20, None], floor=3, policy="streaming"
    )
    assert plan.budgets == (50, 3, 8)
    assert plan.caps == (None,) * 3
    assert plan.exact_total == 61
    assert (plan.allocator, plan.policy) == ("fixed", "streaming")


def test_a_frozen_plan_keeps_its_record() -> None:
    first = plan_of(Squeeze(), policy="streaming", signal="cosine", model="llama-12x2x64", prompt_tokens=900)
    again = plan_of(Fixed(first), policy="streaming", model="llama-12x2x64", prompt_tokens=50)
    kept = {"budgets", "groups", "signal_values", "signal", "p", "model"}
    assert all(getattr(again, name) == getattr(first, name) for name in kept)
    assert (again.allocator, again.prompt_tokens, again.warnings) == ("fixed", 50, ())
    other = plan_of(Fixed(first), policy="h2o", model="llama-12x2x64")
    assert "streaming, not for h2o" in other.warnings[0]


def test_fixed_budgets_of_another_model() -> None:
    with pytest.raises(PlanError, match="3 layers, but the model has 12"):
        plan_of(Fixed([1, 2, 3]))
    with pytest.raises(PlanError, match="llama-12x2x64"):
        plan_of(Fixed(plan_of(Uniform(), model="llama-12x2x64")), model="gpt-12x2x64")


def test_fixed_budgets_below_the_floor() -> None:
    assert plan_of(Fixed([5] * 12), floor=5).budgets == (5,) * 12
    assert plan_of(Fixed([3] * 12), floor=5, caps=[3] * 12).budgets == (3,) * 12
    with pytest.raises(BudgetError, match="layer 0 has a fixed budget of 4 tokens, but needs at least 5"):
        plan_of(Fixed([4] * 12), floor=5)


# --- proportional


def test_proportional_gives_each_layer_what_it_needs() -> None:
    signal_values = [1.0, 0.9, 0.8, 0.6]  # needs of 0, 1, 2 and 4 tenths
    assert plan_of(Proportional(), signal_values).budgets == (1, 57, 114, 228)  # the floor of 1 is paid by all others
    assert plan_of(Proportional(power=2), signal_values).budgets == (1, 19, 76, 304)
    capped = plan_of(Proportional(power=2), signal_values, caps=[200] * 4)
    assert capped.budgets == (1, 40, 159, 200)


def test_a_floor_is_kept_as_far_as_a_quarter_of_the_budget_pays() -> None:
    signal_values = [1.0, 1.0, 1.0, 0.0]
    bare = Proportional(power=3, floor=16)
    assert plan_of(bare, signal_values).budgets == (16, 16, 16, 352)
    assert plan_of(bare, signal_values).floor == 16
    assert plan_of(bare, signal_values, base_budget=40).budgets == (10, 10, 10, 130)
    assert plan_of(bare, signal_values, base_budget=40, floor=20).budgets == (20, 20, 20, 100)  # the policy's own
    assert plan_of(Proportional(power=3, floor=16, hedge=0.25), signal_values).budgets == (25, 25, 25, 325)


def test_without_any_need_proportional_is_uniform() -> None:
    plan = plan_of(Proportional(), [1.0, 1.2, 1.0])
    assert plan.budgets == (100, 100, 100)
    assert "no layer needs" in plan.warnings[0]


def test_a_hedge_divides_a_share_of_the_cache_evenly() -> None:
    signal_values = [1.0, 0.9, 0.8, 0.6]
    assert plan_of(Proportional(hedge=1), signal_values).budgets == (100,) * 4
    assert plan_of(Proportional(hedge=0.5), signal_values).budgets == (50, 79, 107, 164)
    capped = plan_of(Proportional(power=3, hedge=0.4), [1.0, 1.0, 1.0, 0.0], caps=[150] * 4)
    assert capped.budgets == (84, 83, 83, 150)  # what the last layer cannot use, the others share


def test_bad_settings_of_proportional() -> None:
    for bad in (-0.1, 1.1, math.nan, "half", True):
        with pytest.raises(ConfigError, match="hedge"):
            Proportional(hedge=bad)
    for bad in (0, -1, math.inf, math.nan, "3", True):
        with pytest.raises(ConfigError, match="power"):
            Proportional(power=bad)
    for bad in (0, 1.5, True):
        with pytest.raises(ConfigError, match="floor"):
            Proportional(floor=bad)


# --- the rules of other papers


def test_cake_is_in_proportion_to_the_preference_above_its_window() -> None:
    signal_values = [0.0, 0.5, 0.5, 1.0]  # preferences of 1, 1/2, 1/2 and 0 of the largest
    assert plan_of(Cake(floor=1), signal_values).budgets == (199, 100, 100, 1)  # 399 for the three: 199.5, 99.75, 99.75
    assert plan_of(Cake(), signal_values).budgets == (187, 94, 94, 25)  # 32 is more than a quarter of 100
    assert plan_of(Cake(), signal_values, base_budget=1000).budgets == (1984, 992, 992, 32)


def test_zigzag_guarantees_a_part_and_divides_the_rest() -> None:
    signal_values = [0.9, 0.7, 0.4]  # needs of 1, 3 and 6 tenths; a third on average
    assert plan_of(ZigZag(), signal_values).budgets == (44, 92, 164)  # 20 + 80 * (0.3, 0.9, 1.8)
    assert (
        plan_of(ZigZag(bound=0), signal_values).budgets
        == plan_of(Proportional(), signal_values).budgets
        == (30, 90, 180)
    )
    assert plan_of(ZigZag(bound=1), signal_values).budgets == (100, 100, 100)
    assert "uniform" in plan_of(ZigZag(), [1.0, 1.0]).warnings[0]


def test_lazy_layers_stream_and_the_others_share_the_rest() -> None:
    signal_values = [0.9, 0.2, 0.8, 0.3]
    plan = plan_of(Lazy(), signal_values, base_budget=400)
    assert plan.budgets == (68, 732, 68, 732)
    assert plan.groups == (2, 1, 2, 1)
    assert plan_of(Lazy(), signal_values, base_budget=40).budgets == (10, 70, 10, 70)  # a quarter pays for 10
    # as in the paper: the whole prompt where a layer is not lazy; what is left goes to the others
    assert plan_of(Lazy(), signal_values, base_budget=400, caps=[500] * 4).budgets == (300, 500, 300, 500)
    assert plan_of(Lazy(lazy=0.25, streaming=20), signal_values, base_budget=100).budgets == (20, 127, 127, 126)
    assert plan_of(Lazy(), [0.5, 0.7, 0.7]).groups == (1, 1, 2)  # half of three, rounded down; the later of two
    assert plan_of(Lazy(lazy=0), signal_values).budgets == (100,) * 4


def test_equally_lazy_layers_are_uniform_with_a_warning() -> None:
    plan = plan_of(Lazy(), [1.0] * 6)
    assert plan.budgets == (100,) * 6
    assert "equally lazy" in plan.warnings[0]


def test_dynamickv_never_exceeds_r_max_times_the_average() -> None:
    signal_values = [0.0, 0.9, 0.9, 0.8]  # needs of 10, 1, 1 and 2 tenths
    assert plan_of(DynamicKV(floor=1), signal_values).budgets == (286, 29, 28, 57)
    assert plan_of(DynamicKV(floor=1, r_max=2), signal_values).budgets == (200, 50, 50, 100)
    assert plan_of(DynamicKV(r_max=1), signal_values).budgets == (100,) * 4


@settings(max_examples=200, deadline=None)
@given(needs=st.lists(st.floats(0, 1), min_size=1, max_size=20), most=st.floats(1, 12))
def test_capped_shares_keep_their_sum_and_order(needs: list[float], most: float) -> None:
    shares = Proportional().allocate([1 - need for need in needs], len(needs)).shares
    got = capped(shares, most)
    assert math.fsum(got) == pytest.approx(len(needs))
    assert all(0 <= share <= most for share in got)
    order = sorted(range(len(shares)), key=lambda layer: shares[layer])
    assert all(got[a] <= got[b] + 1e-9 for a, b in itertools.pairwise(order))


@pytest.mark.parametrize(
    ("allocator", "options"),
    [
        (ZigZag, {"bound": -0.1}), (ZigZag, {"bound": True}), (ZigZag, {"bound": math.nan}), (Cake, {"power": 0}),
        (Lazy, {"lazy": 1}), (Lazy, {"lazy": -0.5}), (Lazy, {"lazy": "half"}), (Lazy, {"streaming": 0}),
        (Lazy, {"streaming": 1.5}), (DynamicKV, {"r_max": 0.5}), (DynamicKV, {"r_max": math.inf}),
        (DynamicKV, {"r_max": True}), (DynamicKV, {"floor": 0}), (Probe, {"floor": 0}), (Probe, {"power": 0}),
        (Probe, {"heads": "mine"}), (Probe, {"heads": None}),
    ],
)  # fmt: skip
def test_bad_settings_of_the_papers_rules(allocator: type[Allocator], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        allocator(**options)


def test_heads_of_a_layer_may_be_made_equal() -> None:
    """By their mean need: the layer's mean of the shares would be another, for a power above 1."""
    needs = [[0.9, 0.1, 0.2], [0.4, 0.4, 0.4], [0.0, 0.3, 0.6]]
    signal = [[1 - need for need in layer] for layer in needs]
    own, equal = (
        build_plan(Probe(heads=heads, floor=10), signal_values=signal, base_budget=120, caps=[None] * 3)
        for heads in ("own", "equal")
    )
    assert own.head_budgets is not None
    assert equal.head_budgets is None
    assert equal.total == own.total == 360
    shares = [(sum(layer) / 3 + 0.02) ** 1.5 for layer in needs]
    spread = 360 / sum(shares)
    assert all(abs(tokens - share * spread) < 1 for tokens, share in zip(equal.budgets, shares, strict=True))


# --- by name


def test_names() -> None:
    assert ALLOCATORS.names() == sorted([*NAMES, "calibrated"])
    assert NAMES == [
        "adakv", "cake", "dynamickv", "global", "inverted", "lazy", "probe", "pyramid", "random",
        "squeeze", "uniform", "zigzag",
    ]  # fmt: skip
    for name in NAMES:
        assert resolve_allocator(name).name == name


def test_options_reach_those_that_take_them() -> None:
    assert resolve_allocator("squeeze", p=0.4, outliers="clamp") == Squeeze(p=0.4, outliers="clamp")
    assert resolve_allocator("random", p=0.4) == Random(p=0.4)
    assert resolve_allocator("squeeze").p == 0.35


@pytest.mark.parametrize("name", NAMES)
def test_options_that_change_nothing_are_refused(name: str) -> None:
    for option, value in (("p", 0.4), ("outliers", "clamp")):
        if takes(name, option):
            assert getattr(resolve_allocator(name, **{option: value}), option) == value
        else:
            with pytest.raises(ConfigError, match=f"{name!r} has no {option}.*squeeze"):
                resolve_allocator(name, **{option: value})


@pytest.mark.parametrize("options", [{"p": 0.4}, {"outliers": "clamp"}, {"p": 0.4, "outliers": "clamp"}])
def test_parameters_of_the_published_rule_mean_that_rule_where_none_is_named(options):
    assert resolve_allocator(None, **options) == Squeeze(**options)
    own = resolve_policy(DEFAULT_POLICY)
    assert (
        resolve_allocator(None).name
        == default_allocator(own.allocator)
        == own.allocator
        == DEFAULT_ALLOCATOR
        != "squeeze"
    )
    assert resolve_allocator(None, policy=resolve_policy("h2o")).name == "probe"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{"p": 0}, {"p": True}, {"p": "0.3"}, {"outliers": "drop"}, {"outliers": 1}])
def test_options_are_validated_even_where_they_are_not_used(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        resolve_allocator(name, **options)


def test_instances_pass_through() -> None:
    allocator = Squeeze(p=0.4)
    assert resolve_allocator(allocator) is allocator
    assert resolve_allocator(allocator, p=0.4) is allocator
    with pytest.raises(ConfigError, match="changes nothing"):
        resolve_allocator(Uniform(), p=0.4)
    with pytest.raises(ConfigError, match="given twice"):
        resolve_allocator(allocator, p=0.5)


def test_budgets_become_fixed() -> None:
    plan = plan_of(Squeeze())
    for spec in (plan, list(plan.budgets), plan.budgets):
        with pytest.raises(ConfigError, match=r"p=0\.9 changes nothing of Fixed"):
            resolve_allocator(spec, p=0.9)
        allocator = resolve_allocator(spec)
        assert isinstance(allocator, Fixed)
        assert plan_of(allocator).budgets == plan.budgets


@pytest.mark.parametrize("spec", [[], [0], [-1], [1.5], [True], ["a"], (3, None), 7, 0.5, {"a": 1}, Squeeze])
def test_refuses_other_specs(spec: Any) -> None:
    with pytest.raises(ConfigError):
        resolve_allocator(spec)


def test_refuses_a_broken_plan() -> None:
    with pytest.raises(PlanError, match="invariant"):
        resolve_allocator(replace(plan_of(Squeeze()), base_budget=7))


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'squeeze'.*pyramid"):
        resolve_allocator("sqeeze")


class Last(Allocator):
    """All to the last layer: an allocator from outside the library."""

    name = "last"
    needs_signal = False

    def allocate(self, signal_values: Any, n_layers: int) -> Allocation:
        return Allocation((0.0,) * (n_layers - 1) + (1.0,), (2,) * (n_layers - 1) + (1,))


@pytest.fixture
def registered() -> Iterator[None]:
    ALLOCATORS.register("last", Last)
    yield
    ALLOCATORS.unregister("last")


@pytest.mark.usefixtures("registered")
def test_an_allocator_of_ones_own() -> None:
    plan = plan_of(resolve_allocator("last"), floor=5, caps=[300] * 12)
    assert plan.budgets == (82,) * 9 + (81,) * 2 + (300,)  # the cap's surplus goes round
    assert plan.total == 1200
    assert plan.group_sizes == {1: 1, 2: 11}
