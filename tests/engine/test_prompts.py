"""Budgets for each prompt, in groups of layers: the total is the plan's; a group a layer is the paper's method."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squeezeattention import BudgetPlan
from squeezeattention.engine import EngineSettings, PerPrompt, PromptPlanner
from squeezeattention.errors import BudgetError, ConfigError, UnsupportedFeatureError
from squeezeattention.plan import build_plan

BLOCK = 16


def planner_of(budgets, *, sinks=4, **asked):
    plan = BudgetPlan.from_budgets(budgets)
    return PromptPlanner.of(plan, PerPrompt.read(asked or True, plan), BLOCK, sinks=sinks)


@settings(max_examples=150, deadline=None)
@given(
    signal=st.lists(st.floats(0.2, 1.0, allow_nan=False), min_size=3, max_size=40), base=st.integers(32, 900),
    sinks=st.integers(0, 16), p=st.floats(0.05, 1.0), data=st.data(),
)  # fmt: skip
def test_every_prompt_has_the_same_total(signal, base, sinks, p, data):
    n = len(signal)
    counts = [count for count in range(1, n + 1) if n % count == 0 or n // count >= 3]
    planner = planner_of([base] * n, sinks=sinks, allocator="squeeze", p=p, groups=data.draw(st.sampled_from(counts)))
    assert sorted(layer for layers in planner.members for layer in layers) == list(range(n))
    sizes = [len(layers) for layers in planner.members]
    assert max(sizes) - min(sizes) <= 1
    groups = planner.plan(signal)
    assert sum(group.total for group in groups) == planner.blocks_per_sequence
    assert all(group.sinks == -(-sinks // BLOCK) and group.recent >= 1 for group in groups)
    lanes = planner.lanes()
    for index, layers in enumerate(planner.members):
        assert {lanes.lanes[layer] for layer in layers} == {index}
    assert lanes.blocks_per_sequence == planner.blocks_per_sequence
    assert planner.nominal().layers == tuple(lanes.groups[lane] for lane in lanes.lanes)


def test_a_group_for_each_layer_is_the_library_s_plan_in_blocks():
    signal = [0.2, 0.9, 0.55, 0.93, 0.21, 0.5, 0.95, 0.91]
    planner = planner_of([96] * 8)
    order = [layer for layers in planner.members for layer in layers]
    assert len(planner.members) == 8
    plan = build_plan(planner.rule, signal_values=signal, base_budget=96, caps=[None] * 8, floor=planner.least)
    for layer, group in zip(order, planner.plan(signal), strict=True):
        assert abs(group.total * BLOCK - plan.budgets[layer]) < BLOCK
    assert len({group.total for group in planner.plan(signal)}) >= 2


def test_layers_go_together_by_what_was_measured():
    plan = build_plan(
        PerPrompt("squeeze").rule(), signal_values=[0.9, 0.1, 0.5, 0.2, 0.95, 0.6], base_budget=64, caps=[None] * 6
    )
    planner = PromptPlanner.of(plan, PerPrompt.read({"groups": 3}, plan), BLOCK, sinks=0)
    assert planner.members == ((1, 3), (2, 5), (0, 4))
    assert PerPrompt.read(True, plan) == PerPrompt("squeeze", plan.p, None)
    # by budgets where nothing was measured
    assert planner_of([40, 90, 60, 80, 50, 70], groups=2).members == ((1, 3, 5), (0, 2, 4))


@pytest.mark.parametrize(("layers", "groups"), [(6, 6), (8, 8), (26, 8), (28, 8), (32, 8), (80, 8), (13, 4), (7, 7)])
def test_as_many_groups_as_cost_little(layers, groups):
    assert len(planner_of([64] * layers).members) == groups


def test_settings_round_trip_and_refusals():
    plan = BudgetPlan.from_budgets([64, 96, 64]).to_dict()
    read = EngineSettings.read({"plan": plan, "per_prompt": {"allocator": "squeeze", "p": 0.2, "groups": 3}})
    assert EngineSettings.read(json.loads(json.dumps(read.to_dict()))) == read
    assert EngineSettings.read({"plan": plan, "per_prompt": False}).planner(BLOCK) is None
    for given_, error, words in (
        ({"per_prompt": 3}, ConfigError, "true, false or an object of allocator, groups, p; got 3"),
        ({"per_prompt": {"colour": 1}}, ConfigError, "unknown settings of per_prompt: colour"),
        ({"per_prompt": {"groups": 0}}, ConfigError, "groups of per_prompt"),
        ({"per_prompt": {"allocator": 3}}, ConfigError, "must be a name, got 3"),
        ({"per_prompt": {"allocator": "sqeeze"}}, ConfigError, "sqeeze"),
        ({"per_prompt": {"p": 2}}, ConfigError, "p must be"),
        ({"per_prompt": {"allocator": "zigzag"}}, UnsupportedFeatureError, "'zigzag' follows"),
        ({"per_prompt": {"allocator": "uniform"}}, UnsupportedFeatureError, "the same for all prompts"),
        ({"per_prompt": True, "prefill": "windowed"}, UnsupportedFeatureError, "measured as a whole"),
        ({"per_prompt": True, "policy": "h2o"}, UnsupportedFeatureError, "compact design"),
    ):
        with pytest.raises(error, match=words):
            EngineSettings.read({"plan": plan, **given_})
    with pytest.raises(ConfigError, match=r"2 groups of 3 layers .* 1, 3"):
        planner_of([64] * 3, groups=2)
    with pytest.raises(BudgetError, match="20 tokens per layer are less than the 32"):
        planner_of([20] * 4)
