"""Frozen plans, how they fit, and the study of many prompts: by hand where plans are few, in general where not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squeezeattention import BudgetPlan
from squeezeattention.allocators import Allocator, Probe, Squeeze, Uniform, ZigZag
from squeezeattention.errors import ConfigError
from squeezeattention.plan import build_plan
from squeezeattention.stability import Fit, Observation, agreement, fits_of, freeze, moved, study

#: Four layers: one is cut, and which one is up to the signal.
FIRST, LAST = [0.9, 0.1, 0.1, 0.5], [0.5, 0.1, 0.1, 0.9]
RULE = Squeeze(p=0.5)


def plan(
    signal_values: Sequence[float], base: int = 60, allocator: Allocator = RULE, prompt_tokens: int = 600
) -> BudgetPlan:
    return build_plan(
        allocator, signal_values=signal_values, base_budget=base, caps=[prompt_tokens] * len(signal_values), floor=2,
        signal="cosine", policy="h2o", prompt_tokens=prompt_tokens, model="m",
    )  # fmt: skip


FREEZE = partial(freeze, allocator=RULE, floor=2)
MANY = st.integers(3, 8).flatmap(
    lambda n: st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 8).map(lambda x: x / 8), min_size=n, max_size=n)),
        min_size=1,
        max_size=7,
    )
)


def test_plans_of_the_example() -> None:
    assert plan(FIRST).budgets == (30, 70, 70, 70)
    assert plan(FIRST).groups == (3, 1, 1, 2)
    assert plan(LAST).budgets == (70, 70, 70, 30)


# ------------------------------------------------------------------- freezing


def test_frozen_by_signal_is_the_plan_of_the_mean_signal() -> None:
    frozen = FREEZE([plan(FIRST), plan(FIRST, base=80, prompt_tokens=1000), plan(LAST)])
    assert frozen.signal_values == pytest.approx((2.3 / 3, 0.1, 0.1, 1.9 / 3))
    assert frozen.groups == (3, 1, 1, 2)
    assert frozen.base_budget == 67  # of 60, 80, 60
    assert frozen.caps == (1000,) * 4
    assert frozen.prompt_tokens == 733
    assert (frozen.allocator, frozen.signal, frozen.policy, frozen.model, frozen.p) == (
        "squeeze", "cosine", "h2o", "m", 0.5,
    )  # fmt: skip


def test_frozen_by_shares_is_the_mean_of_the_budgets() -> None:
    plans = [plan(FIRST), plan(FIRST), plan(LAST)]
    frozen = FREEZE(plans, by="shares")
    assert frozen.budgets == (43, 70, 70, 57)  # 130/3, 70, 70, 170/3, rounded to the same total
    assert frozen.groups == (3, 1, 1, 2)
    assert frozen.allocator == "squeeze, mean shares"
    assert frozen.p is None
    assert BudgetPlan.from_dict(frozen.to_dict()) == frozen


@settings(deadline=None)
@given(MANY, st.sampled_from(["signal", "shares"]))
def test_frozen_plans_spend_the_mean_budget(many: list[tuple[str, list[float]]], by: str) -> None:
    plans = [plan(values, base=40 + 20 * len(task)) for task, values in many]
    frozen = FREEZE(plans, by=by)
    assert frozen.check().total == frozen.n_layers * frozen.base_budget
    one = FREEZE([plans[0]], by=by)
    assert one.budgets == plans[0].budgets
    assert one.groups == plans[0].groups


def test_freezing_refuses() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        FREEZE([])
    with pytest.raises(ConfigError, match="same number"):
        FREEZE([plan(FIRST), plan([0.1, 0.2, 0.3])])
    with pytest.raises(ConfigError, match="signal"):
        FREEZE([plan(FIRST), BudgetPlan.from_budgets([1, 2, 3, 4])])
    with pytest.raises(ConfigError, match="'mode'"):
        FREEZE([plan(FIRST)], by="mode")
    with pytest.raises(ConfigError, match="needs what a signal measured"):
        FREEZE([BudgetPlan.from_budgets([10, 20])])
    assert FREEZE([BudgetPlan.from_budgets([10, 20])], by="shares").budgets == (10, 20)


# ----------------------------------------------------------------------- fits


def test_fits_by_hand() -> None:
    """Three prompts agree, one does not: 40 of its 240 tokens lie elsewhere."""
    plans = [plan(FIRST), plan(FIRST), plan(FIRST), plan(LAST)]
    frozen, unseen, task, uniform = fits_of(plans, ["a", "a", "b", "b"], FREEZE, FREEZE(plans))
    elsewhere = pytest.approx(40 / 240)
    assert frozen == Fit("frozen", 4, 0.75, 0.875, pytest.approx(10 / 240), elsewhere)
    assert unseen == Fit("unseen prompt", 4, 0.75, 0.875, pytest.approx(10 / 240), elsewhere)
    # "a" against the mean of b's two prompts: layers 0 and 3 are level at 0.7, so both are cut, in other groups
    assert task.prompts == 4
    assert task.moved > frozen.moved
    assert uniform == Fit("uniform", 4, None, None, pytest.approx(30 / 240), pytest.approx(30 / 240))


def test_unseen_plans_do_not_know_the_prompt() -> None:
    """Two prompts that disagree: each is held against the other's plan, which the frozen plan hides."""
    plans = [plan(FIRST), plan(LAST, base=90)]
    fits = {fit.against: fit for fit in fits_of(plans, ["a", "a"], FREEZE, FREEZE(plans))}
    assert set(fits) == {"frozen", "unseen prompt", "uniform"}
    assert fits["unseen prompt"].moved == pytest.approx(40 / 240)
    assert fits["unseen prompt"].same_groups == 0
    assert fits["frozen"].moved < fits["unseen prompt"].moved


# ---------------------------------------------------------------------- study


def test_agreement_by_hand() -> None:
    found = agreement([(plan(FIRST), plan(LAST)), (plan(FIRST), plan(FIRST))])
    assert found.pairs == 2
    assert found.same_layers == 0.75
    assert found.adjusted_rand == 1.0  # layers 1 and 2 together, 0 and 3 alone: only the names differ
    assert found.spearman == pytest.approx((1 + (1 - 6 * 2 / 60)) / 2, abs=0.1)
    assert found.moved == pytest.approx(20 / 240)
    empty = agreement([])
    assert (empty.pairs, empty.same_layers, empty.spearman, empty.moved) == (0, None, None, None)


def test_study_of_two_tasks() -> None:
    seen = [Observation(f"{task}{i}", task, plan(values)) for task, values in (("a", FIRST), ("b", LAST)) for i in "12"]
    found = study(seen, FREEZE)
    assert (found.within.pairs, found.between.pairs, found.all.agreement.pairs) == (2, 4, 6)
    assert found.within.same_layers == 1
    assert found.within.moved == 0
    assert found.between.same_layers == 0.5
    assert found.between.moved == pytest.approx(40 / 240)
    assert [task.task for task in found.tasks] == ["a", "b"]
    assert [task.usual_groups for task in found.tasks] == [(3, 1, 1, 2), (2, 1, 1, 3)]
    assert found.tasks[0].group_sizes == (2, 1, 1)
    assert found.all.groups == ((0, 2, 2), (4, 0, 0), (4, 0, 0), (0, 2, 2))
    assert found.all.budgets[0].low == 30
    assert found.all.budgets[0].mean == 50
    assert found.all.shares[0].low == 0.5
    assert found.all.shares[1].mean == pytest.approx(70 / 60)
    assert found.all.signal is not None
    assert found.all.signal[3].mean == pytest.approx(0.7)
    assert json.loads(json.dumps(found.to_dict()))["between"]["pairs"] == 4


@pytest.mark.parametrize("allocator", [ZigZag(), Uniform()])
def test_without_groups_nothing_is_said_of_them(allocator: Allocator) -> None:
    seen = [Observation(str(i), "a", plan(values, allocator=allocator)) for i, values in enumerate((FIRST, LAST))]
    found = study(seen, partial(freeze, allocator=allocator))
    assert found.all.groups is found.all.usual_groups is found.all.group_sizes is None
    assert found.all.agreement.same_layers is None
    assert all(fit.same_groups is fit.same_layers is None for fit in found.fits)
    assert found.all.agreement.spearman is not None


@settings(deadline=None, max_examples=50)
@given(MANY)
def test_any_study_adds_up(many: list[tuple[str, list[float]]]) -> None:
    seen = [Observation(str(i), task, plan(values)) for i, (task, values) in enumerate(many)]
    found = study(seen, FREEZE)
    n = len(seen)
    assert found.within.pairs + found.between.pairs == found.all.agreement.pairs == n * (n - 1) // 2
    assert sum(task.agreement.pairs for task in found.tasks) == found.within.pairs
    assert sum(task.prompts for task in found.tasks) == n
    for fit in found.fits:
        assert fit.prompts == n
        assert 0 <= fit.moved <= fit.worst + 1e-12 < 1
    if found.all.group_sizes is not None:
        assert sum(found.all.group_sizes) == pytest.approx(len(many[0][1]))
    if found.all.agreement.moved is not None:
        assert 0 <= found.all.agreement.moved < 1
        distances = [moved(a.plan.budgets, b.plan.budgets) for i, a in enumerate(seen) for b in seen[:i]]
        assert found.all.agreement.moved == pytest.approx(sum(distances) / len(distances))


def test_study_refuses() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        study([], FREEZE)
    with pytest.raises(ConfigError, match="layers"):
        study([Observation("1", "a", plan(FIRST)), Observation("2", "a", plan([0.1, 0.2, 0.3]))], FREEZE)
    with pytest.raises(ConfigError, match="signal"):
        study([Observation("1", "a", plan(FIRST)), Observation("2", "a", BudgetPlan.from_budgets([1] * 4))], FREEZE)


# ------------------------------------------------------------------- KV heads


def headed(*layers: Sequence[int], signal: Sequence[float] = (0.2, 0.8)) -> BudgetPlan:
    heads = BudgetPlan.from_budgets(layers, allocator="probe")
    return replace(heads, signal_values=tuple(signal), signal="replay")


def test_frozen_heads_are_the_mean_of_the_shares() -> None:
    """Two prompts that want other heads of layer 0, the second twice as long."""
    frozen = freeze([headed((30, 10), (10, 10)), headed((40, 80), (20, 20))], Probe())
    # of the cache: 1 and 1/3 | 1/3, and 1/2 and 1 | 1/4; brought to 56 tokens
    assert frozen.head_budgets == ((42, 38), (16, 16))
    assert frozen.budgets == (40, 16)
    assert frozen.allocator == "probe, mean shares"
    assert frozen.signal_values == (0.2, 0.8)
    assert BudgetPlan.from_dict(frozen.to_dict()) == frozen


def test_heads_with_a_prompt_that_was_too_short_to_tell() -> None:
    even = replace(headed((30, 30), (10, 10)), head_budgets=None)
    assert freeze([headed((40, 20), (10, 10)), even], Probe()).head_budgets == ((35, 25), (10, 10))


def test_tokens_in_other_heads_count_as_elsewhere() -> None:
    plans = [headed((30, 10), (10, 10)), headed((10, 30), (10, 10))]
    assert agreement([tuple(plans)]).moved == pytest.approx(20 / 60)
    fits = {fit.against: fit.moved for fit in study(
        [Observation(str(i), "a", one) for i, one in enumerate(plans)], partial(freeze, allocator=Probe())
    ).fits}  # fmt: skip
    assert fits == pytest.approx({"frozen": 10 / 60, "unseen prompt": 20 / 60, "uniform": 15 / 60})


def test_heads_are_not_frozen_by_signal() -> None:
    with pytest.raises(ConfigError, match="freeze them by shares"):
        freeze([headed((30, 10), (10, 10))], Probe(), by="signal")
    with pytest.raises(ConfigError, match="plans of one model"):
        agreement([(headed((30, 10), (10, 10)), headed((30, 10, 20), (10, 10, 10)))])
