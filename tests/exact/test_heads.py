"""Budgets that differ among KV heads and rows, against the naive reference: every family and policy."""

import copy
import random

import pytest
import torch

from squeezeattention import POLICIES, SqueezeCache
from squeezeattention.errors import UnsupportedModelError
from squeezeattention.hf.layout import inspect_model
from squeezeattention.testing import (
    FAMILIES,
    REFERENCE_POLICIES,
    NaiveReference,
    Recorded,
    left_padded,
    position_ids,
    rules_for,
    teacher_forced,
    tiny_model,
)

from .conftest import COMPILED

LENGTHS = (41, 29, 37)
STEPS = 64
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    model = tiny_model(request.param, **({"attn_implementation": "eager"} if request.param == "gemma2" else {}))
    return model, inspect_model(model).windows


def story(seed: int, steps: int = STEPS) -> tuple[list[list[int]], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 101, (n,), generator=generator).tolist() for n in LENGTHS]
    return rows, torch.randint(3, 101, (len(rows), steps), generator=generator)


def kv_heads(model) -> int:
    """Heads that the cache stores."""
    cache = SqueezeCache(model, budget=8)
    teacher_forced(model, cache, [[3, 4, 5]])
    return cache.kept_positions(0).shape[1]


def ragged(rng: random.Random, layers: int, heads: int) -> list[list[int]]:
    return [[rng.choice([6, 9, 17, 30, 60, rng.randint(6, 50)]) for _ in range(heads)] for _ in range(layers)]


def is_refused(model, policy) -> bool:
    """Scorers of each head's own keys and values cannot work where one latent is cached for all: they say so."""
    if model.config.model_type != "deepseek_v3" or policy not in ("criticalkv", "defensivekv", "expected_attention"):
        return False
    with pytest.raises(UnsupportedModelError, match=f"policy '{policy}' looks at each head's keys and values.*MLA"):
        SqueezeCache(model, budget=20, policy=policy)
    return True


@pytest.mark.parametrize("policy", POLICIES.names())
def test_ragged_heads_equal_the_reference(family, policy):
    """A left-padded batch, 64 steps; budgets hold after every one; in chunks too; bytes are those of the plan."""
    model, windows = family
    if is_refused(model, policy):
        return
    heads = kv_heads(model)
    rng = random.Random(f"{policy}{type(model).__name__}")
    budgets = ragged(rng, len(windows), heads)
    rows, generated = story(seed=5)
    cache = SqueezeCache(model, policy=policy, allocator=budgets)
    recorded = Recorded(cache)

    def held():
        recorded.note()
        for layer, (lengths, own) in enumerate(zip(cache.head_lengths(), budgets, strict=True)):
            for length, budget in zip(lengths, own, strict=True):
                assert length <= min(budget, windows[layer] or budget)

    ours = teacher_forced(model, cache, rows, generated, after_step=held)
    for index, row in enumerate(rows):
        known = policy in REFERENCE_POLICIES
        reference = NaiveReference(model, policy if known else recorded.choice(index), windows, heads)
        want = reference.run(row, budgets, generated[index].tolist())
        assert (ours[index] - want).abs().max() <= TOLERANCE
        for layer in range(len(windows)):
            kept = [{p for p in head if p >= 0} for head in cache.kept_positions(layer)[index].tolist()]
            assert kept == reference.kept[layer]
    for layer, own in zip(cache.layers, budgets, strict=True):
        one = layer.store.bytes_per_token // heads
        most = sum(min(tokens, layer.window or tokens) for tokens in own) * one * len(rows)
        assert layer.store.kv_bytes() <= most
    chunked = SqueezeCache(model, policy=policy, allocator=budgets)
    in_chunks = teacher_forced(model, chunked, rows, generated[:, :3], chunk=11)
    for got, want in zip(in_chunks, ours, strict=True):
        assert (got - want[: len(got)]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("policy", REFERENCE_POLICIES)
def test_turns_and_picked_rows(family, policy):
    """Three turns of a padded batch, of several tokens each; then rows are picked, as beam search does."""
    model, windows = family
    heads = kv_heads(model)
    rng = random.Random(f"turns{policy}{type(model).__name__}")
    rows, _ = story(seed=6)
    budgets = ragged(rng, len(windows), heads)
    cache = SqueezeCache(model, policy=policy, allocator=budgets)
    references = [NaiveReference(model, policy, windows, heads) for _ in rows]
    mask = torch.zeros(3, 0, dtype=torch.long)
    for turn in range(3):
        parts = [row[turn * 13 : turn * 13 + 9 - 2 * index] for index, row in enumerate(rows)] if turn else rows
        ids, real = left_padded(parts)
        mask = torch.cat([mask, real], dim=1)
        ours = forward(model, cache, ids, mask)
        for row, reference in enumerate(references):
            want = reference.read(parts[row])
            assert (ours[row, -len(parts[row]) :] - want).abs().max() <= TOLERANCE
            reference.cut(budgets)
        if turn == 1:
            order = [2, 0, 0]
            cache.compact()
            cache.reorder_cache(torch.tensor(order))
            mask = mask[order]
            rows = [rows[index] for index in order]
            references = [copy_of(references[index], model) for index in order]
        for _ in range(4):
            tokens = torch.tensor([[rng.randrange(3, 101)] for _ in rows])
            mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
            ours = forward(model, cache, tokens, mask)
            for row, reference in enumerate(references):
                assert (ours[row, 0] - reference.step(int(tokens[row]))).abs().max() <= TOLERANCE


def forward(model, cache, ids, mask):
    with torch.no_grad():
        positions = position_ids(mask)[:, -ids.shape[1] :]
        return model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits


def copy_of(reference: NaiveReference, model) -> NaiveReference:
    """The same story so far, to be gone on with by itself."""
    twin = NaiveReference(model, reference.policy, reference.windows, reference.kv_heads)
    for name in ("tokens", "seen", "kept", "mass", "budgets"):
        setattr(twin, name, copy.deepcopy(getattr(reference, name)))
    return twin


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("family", COMPILED, indirect=True)
def test_compiled_steps_and_copies(family, policy, graphs):
    model, windows = family
    if is_refused(model, policy):
        return
    budgets = ragged(random.Random(policy), len(windows), kv_heads(model))
    rows, generated = story(seed=7, steps=12)
    plain = SqueezeCache(model, policy=policy, allocator=budgets)
    want = teacher_forced(model, plain, rows, generated)
    compiled = SqueezeCache(model, policy=policy, allocator=budgets, compile=True)
    for got, wanted in zip(teacher_forced(model, compiled, rows, generated), want, strict=True):
        assert (got - wanted).abs().max() <= TOLERANCE
    assert 1 <= len(graphs) <= 4
    twin = copy.deepcopy(plain)
    mask = torch.cat([left_padded(rows)[1], torch.ones(3, 13, dtype=torch.long)], dim=1)
    token = torch.tensor([[5], [6], [7]])
    assert torch.equal(forward(model, twin, token, mask), forward(model, plain, token, mask))
    assert twin.memory() == plain.memory()


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("family", ["llama", "qwen3-window"], indirect=True)
def test_one_row_alone_has_the_plan_and_the_logits_that_it_has_in_a_batch(family, policy):
    """With every allocator, a budget by share, and padding of any width."""
    model, _ = family
    rows, generated = story(seed=8, steps=6)
    rows = [row * 3 for row in rows]  # long enough to be replayed
    for allocator in rules_for(policy):
        together = SqueezeCache(model, budget=0.3, policy=policy, allocator=allocator, min_tokens=1)
        batch = teacher_forced(model, together, rows, generated)
        for index, row in enumerate(rows):
            alone = SqueezeCache(model, budget=0.3, policy=policy, allocator=allocator, min_tokens=1)
            (logits,) = teacher_forced(model, alone, [row], generated[index : index + 1])
            assert budgets_of(alone.plan) == budgets_of(together.plans[index]), allocator
            assert (logits - batch[index]).abs().max() <= TOLERANCE, allocator


def budgets_of(plan):
    return plan.budgets if plan.head_budgets is None else plan.head_budgets
