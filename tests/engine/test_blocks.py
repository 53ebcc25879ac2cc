"""Plans in whole blocks: never more than the tokens they are made of, sinks and one block for every layer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squeezeattention import BudgetPlan
from squeezeattention.engine import BlockPlan, LayerBlocks, assign_lanes
from squeezeattention.engine.lanes import lanes_without_waste
from squeezeattention.errors import BudgetError, ConfigError


@settings(max_examples=300, deadline=None)
@given(
    budgets=st.lists(st.integers(1, 3000), min_size=1, max_size=40), size=st.sampled_from([1, 16, 32, 128]),
    sinks=st.sampled_from([0, 4, 33]),
)  # fmt: skip
def test_the_total_never_grows(budgets, size, sinks):
    plan, least = BudgetPlan.from_budgets(budgets), -(-sinks // size) + 1
    if min(budgets) < size or sum(budgets) // size < least * len(budgets):
        with pytest.raises(BudgetError):
            BlockPlan.of(plan, size, sinks=sinks)
        return
    blocks = BlockPlan.of(plan, size, sinks=sinks)
    assert blocks.total == sum(budgets) // size
    assert sum(blocks.tokens) <= plan.total
    assert all(layer.sinks == least - 1 and layer.recent >= 1 for layer in blocks.layers)
    free = [budget for budget in budgets if budget // size > least]
    if len(free) == len(budgets):
        for layer, budget in zip(blocks.layers, budgets, strict=True):
            assert abs(layer.total * size - budget) < size


@settings(max_examples=200, deadline=None)
@given(
    budgets=st.integers(1, 4).flatmap(
        lambda heads: st.lists(st.lists(st.integers(5, 900), min_size=heads, max_size=heads), min_size=1, max_size=30)
    ),
    size=st.sampled_from([8, 16, 32]),
)
def test_heads_share_the_blocks_of_their_layer(budgets, size):
    heads, plan = len(budgets[0]), BudgetPlan.from_budgets(budgets)
    total = sum(map(sum, budgets))
    if total // (size * heads) < len(budgets):
        with pytest.raises(BudgetError, match="less than one a layer"):
            BlockPlan.of_heads(plan, size, heads)
        return
    blocks = BlockPlan.of_heads(plan, size, heads)
    rooms = blocks.rooms(plan, heads, minimum=5)
    assert blocks.total == total // (size * heads)
    assert [sum(layer) for layer in rooms] == [tokens * heads for tokens in blocks.tokens]
    assert min(map(min, rooms)) >= 5
    lanes = lanes_without_waste(blocks.layers)
    assert lanes.waste(blocks.layers) == 0
    for layer, own in zip(budgets, rooms, strict=True):
        if sum(layer) == sum(own):
            assert list(own) == layer  # what is whole blocks already is not touched
        assert all(
            a <= b + 1 for x, a in zip(layer, own, strict=True) for y, b in zip(layer, own, strict=True) if x < y
        )


def test_what_is_held():
    layer = LayerBlocks(sinks=1, recent=3)
    assert [layer.held(tokens, 32) for tokens in (1, 32, 33, 128, 129, 5000)] == [1, 1, 2, 4, 4, 4]
    assert [layer.first_recent(block) for block in (0, 3, 4, 10)] == [1, 1, 2, 8]


def test_mistakes():
    plan = BudgetPlan.from_budgets([64, 31, 64])
    with pytest.raises(BudgetError, match="layer 1 has a budget of 31 tokens, less than a block of 32"):
        BlockPlan.of(plan, 32, sinks=4)
    with pytest.raises(BudgetError, match="6 blocks of 16, but 4 layers need 2 each"):
        BlockPlan.of(BudgetPlan.from_budgets([24] * 4), 16, sinks=4)
    for size, sinks in ((0, 4), (True, 4), (32, -1), (32, 1.5)):
        with pytest.raises(ConfigError):
            BlockPlan.of(plan, size, sinks=sinks)


def layers_of(*counts: int) -> list[LayerBlocks]:
    """``counts[i]`` layers that keep ``i + 2`` blocks, interleaved."""
    left = list(counts)
    out = []
    while any(left):
        for kind, count in enumerate(left):
            if count:
                out.append(LayerBlocks(1, kind + 1))
                left[kind] -= 1
    return out


@settings(max_examples=200, deadline=None)
@given(counts=st.lists(st.integers(1, 24), min_size=1, max_size=4))
def test_lanes_cover_their_layers(counts):
    layers = layers_of(*counts)
    found = assign_lanes(layers)
    assert found.n_groups * found.group_size >= len(layers)
    assert 0 <= found.waste(layers) < 1
    for layer in set(layers):
        numbers = sorted({found.lanes[i] for i, other in enumerate(layers) if other == layer})
        assert numbers == list(range(len(numbers)))


def test_divisions_that_waste_less():
    """Seven groups of six instead of two of 18; nine groups where a bucket of three leaves no fewer."""
    for counts, most, waste in (((18, 14), 8, 0.08), ((14, 18), 8, 0.09), ((16, 16), 8, 0.0), ((3, 29), 9, 0.12)):
        layers = layers_of(*counts)
        found = assign_lanes(layers)
        assert found.n_groups <= most, counts
        assert found.waste(layers) <= waste, counts
    assert assign_lanes(layers_of(18, 14)).waste(layers_of(18, 14)) < assign_lanes(layers_of(18, 14), 2).waste(
        layers_of(18, 14)
    )


@settings(max_examples=200, deadline=None)
@given(budgets=st.lists(st.integers(64, 3000), min_size=1, max_size=40), levels=st.integers(1, 8))
def test_few_levels(budgets, levels):
    blocks = BlockPlan.of(BudgetPlan.from_budgets(budgets), 32, sinks=4)
    leveled = blocks.leveled(levels)
    assert len(set(leveled.layers)) <= levels
    assert leveled.total <= blocks.total
    assert leveled.total > blocks.total - len(budgets)
    order = sorted(range(len(budgets)), key=lambda layer: blocks.layers[layer])
    assert [leveled.layers[layer] for layer in order] == sorted(leveled.layers)
