"""Every family, policy and allocator against the naive reference and the stock cache."""

import pytest
import torch
from transformers import DynamicCache

from squeezeattention import POLICIES, BudgetPlan, SqueezeCache
from squeezeattention.cache.store import LayerStore
from squeezeattention.errors import ConfigError
from squeezeattention.hf.layout import inspect_model
from squeezeattention.testing import FAMILIES, NaiveReference, left_padded, rules_for, teacher_forced, tiny_model

from .conftest import CORE

LENGTHS = (41, 29, 37)
STEPS = 64
TOLERANCE = 1e-4


def story(seed: int = 1) -> tuple[list[list[int]], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 101, (n,), generator=generator).tolist() for n in LENGTHS]
    return rows, torch.randint(3, 101, (len(rows), STEPS), generator=generator)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    # Old releases let sdpa drop Gemma 2's softcap silently: then the stock model is the one that is wrong.
    model = tiny_model(request.param, **({"attn_implementation": "eager"} if request.param == "gemma2" else {}))
    return model, inspect_model(model).windows


def refuses(model, policy):
    """See test_heads.py."""
    return model.config.model_type == "deepseek_v3" and policy in ("criticalkv", "defensivekv", "expected_attention")


def test_enough_budget_equals_the_stock_cache(family):
    model, _ = family
    rows, generated = story()
    stock = teacher_forced(model, DynamicCache(config=model.config), rows, generated)
    for policy in POLICIES:
        if refuses(model, policy):
            continue
        steps = STEPS if policy in CORE else 8  # nothing is evicted: they all do the same
        cache = SqueezeCache(model, budget=max(LENGTHS) + STEPS, policy=policy)
        ours = teacher_forced(model, cache, rows, generated[:, :steps])
        for got, want in zip(ours, stock, strict=True):
            assert (got - want[: len(got)]).abs().max() <= TOLERANCE, policy


@pytest.mark.parametrize("policy", ["sliding_window", "streaming_llm", "h2o"])
@pytest.mark.parametrize("allocator", rules_for())
def test_small_budgets_equal_the_reference(family, policy, allocator):
    """A left-padded batch, 64 steps; budgets hold after every one. The prompt in chunks leaves the same cache."""
    model, windows = family
    if allocator not in rules_for(policy):
        with pytest.raises(ConfigError, match="has none"):
            SqueezeCache(model, budget=17, policy=policy, allocator=allocator)
        return
    rows, generated = story()
    cache = SqueezeCache(model, budget=17, policy=policy, allocator=allocator)

    def held():
        for index, plan in enumerate(cache.plans):
            for layer, heads in enumerate(cache.head_lengths(index)):
                assert all(n <= b for n, b in zip(heads, plan.heads(layer, len(heads)), strict=True)), (heads, plan)

    ours = teacher_forced(model, cache, rows, generated, after_step=held)
    kv_heads = cache.kept_positions(0).shape[1]
    moved = 0.0
    for index, row in enumerate(rows):
        reference = NaiveReference(model, policy, windows, kv_heads)
        want = reference.run(row, budgets_of(cache.plans[index]), generated[index].tolist())
        assert (ours[index] - want).abs().max() <= TOLERANCE
        for layer in range(len(windows)):
            kept = [{p for p in head if p >= 0} for head in cache.kept_positions(layer)[index].tolist()]
            assert kept == reference.kept[layer]
        with torch.no_grad():
            full = model(input_ids=torch.tensor([row + generated[index].tolist()])).logits[0]
        moved = max(moved, (full - want).abs().max().item())
    assert moved > 100 * TOLERANCE, "evicting changed nothing: the comparison proves nothing"

    # What is left after the prompt is the same, so what follows is: two steps are enough.
    steps = generated[:, :2]
    chunked = SqueezeCache(model, budget=17, policy=policy, allocator=allocator)
    in_chunks = teacher_forced(model, chunked, rows, steps, chunk=11)
    assert list(map(budgets_of, chunked.plans)) == list(map(budgets_of, cache.plans))
    for got, want in zip(in_chunks, ours, strict=True):
        assert (got - want[: len(got)]).abs().max() <= TOLERANCE
    whole = SqueezeCache(model, budget=17, policy=policy, allocator=allocator)
    teacher_forced(model, whole, rows, steps)
    assert_same_state(chunked, whole)


def budgets_of(plan: BudgetPlan) -> tuple:
    """By layer, or by layer and head."""
    return plan.budgets if plan.head_budgets is None else plan.head_budgets


def assert_same_state(one: SqueezeCache, other: SqueezeCache) -> None:
    """The same tokens in every layer, row and head, with the same keys, values and scores."""
    for index, (mine, theirs) in enumerate(zip(one.layers, other.layers, strict=True)):
        assert torch.equal(one.kept_positions(index), other.kept_positions(index))
        for got, want in zip(by_position(mine.store), by_position(theirs.store), strict=True):
            assert (got - want).abs().max() <= TOLERANCE


def by_position(store: LayerStore) -> list[torch.Tensor]:
    """Keys, values and scores ``[B, H, used, *]`` in the order of their positions, holes first and zero."""
    keys, values = store.view()
    positions = store.used_positions().expand(*keys.shape[:2], -1)
    order = positions.argsort(-1)
    scores = store.used_scores()
    found = [keys, values, *([] if scores is None else [scores[..., None]])]
    hole = (positions.gather(-1, order) < 0)[..., None]
    return [t.gather(2, order[..., None].expand(-1, -1, -1, t.shape[-1])).masked_fill(hole, 0.0) for t in found]


def test_a_row_in_a_batch_equals_the_row_alone(family):
    model, _ = family
    rows, generated = story(seed=2)
    generated = generated[:, :12]
    for policy in POLICIES:
        budgets = [9, 26, 14, 19]
        if refuses(model, policy):
            continue
        together = teacher_forced(model, SqueezeCache(model, policy=policy, allocator=budgets), rows, generated)
        for index, row in enumerate(rows):
            cache = SqueezeCache(model, policy=policy, allocator=budgets)
            (alone,) = teacher_forced(model, cache, [row], generated[index : index + 1])
            assert (together[index] - alone).abs().max() <= TOLERANCE


def test_any_other_cache_on_an_attached_model_is_untouched(family):
    model, _ = family
    ids, mask = left_padded(story()[0])
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        cache = SqueezeCache(model, budget=16)
        during = model(input_ids=ids, attention_mask=mask).logits
        teacher_forced(model, cache, story()[0])
        cache.detach()
        after = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(before, during)
    assert torch.equal(before, after)
