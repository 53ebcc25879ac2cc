"""One pool of places for each request, divided anew for each prompt: the library's plan, within the plan's blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from squeezeattention import POLICIES, BudgetPlan, SqueezeCache
from squeezeattention.engine import EngineSettings, PerPrompt
from squeezeattention.engine.head_plans import HeadPlanner, PoolRooms
from squeezeattention.errors import BudgetError
from squeezeattention.testing import tiny_model

BLOCK = 16


def planner_of(budgets, policy="h2o"):
    return HeadPlanner.of(BudgetPlan.from_budgets(budgets), PerPrompt("probe"), POLICIES.create(policy), BLOCK)


@settings(max_examples=100, deadline=None)
@given(
    layers=st.integers(1, 12), heads=st.integers(1, 5), base=st.integers(16, 300), prompt=st.integers(1, 900),
    new=st.one_of(st.none(), st.integers(1, 300)), data=st.data(),
)  # fmt: skip
def test_every_prompt_fills_one_pool(layers, heads, base, prompt, new, data):
    planner = planner_of([base] * layers)
    values = data.draw(
        st.lists(st.lists(st.floats(0, 1), min_size=heads, max_size=heads), min_size=layers, max_size=layers)
    )
    plan = planner.plan(values, prompt_tokens=prompt, total_tokens=None if new is None else prompt + new)
    rooms = PoolRooms.of(plan, heads)
    assert planner.blocks * BLOCK <= layers * base
    assert planner.nominal().total == planner.blocks
    used = sum(map(sum, rooms.rooms))
    assert used == planner.base_budget * layers * heads <= planner.blocks * BLOCK * heads
    assert planner.blocks * BLOCK * heads - used < layers * heads
    ends = [begin + sum(own) for begin, own in zip(rooms.begins, rooms.rooms, strict=True)]
    assert list(rooms.begins) == [0, *ends[:-1]]


@torch.no_grad()
def test_it_is_the_plan_of_a_cache():
    model = tiny_model("llama", num_hidden_layers=3, vocab_size=512)
    cache = SqueezeCache(model, budget=48, policy="h2o", allocator="probe", new_tokens=20)
    model(torch.randint(3, 512, (1, 120)), past_key_values=cache)
    cache.compact()
    planner, heads = planner_of([48] * 3), cache.layers[0].store.shape[1]
    values = [[1 - need for need in layer] for layer in cache.signal.needs()[0]]
    plan = planner.plan(values, prompt_tokens=120, total_tokens=140)
    assert [plan.heads(layer, heads) for layer in range(3)] == [cache.plan.heads(layer, heads) for layer in range(3)]


def test_totals_of_plans_by_head():
    assert planner_of([[40, 24], [90, 38]]).blocks == (64 + 128) // 2 // BLOCK
    with pytest.raises(BudgetError, match="a plan of 40 tokens is 2 blocks of 16, less than one for each of 4 layers"):
        planner_of([10] * 4)
    given = {"plan": BudgetPlan.from_budgets([[40, 24], [90, 38]]).to_dict(), "per_prompt": True}
    read = EngineSettings.read(given)
    assert (read.design, read.per_prompt, read.planner(BLOCK)) == ("slab", PerPrompt("probe"), None)
    assert EngineSettings.read(read.to_dict()) == read
    read.check(BLOCK)
