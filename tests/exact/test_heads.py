"""Budgets that differ among KV heads and rows, against the naive reference: every family and policy."""

import random

import pytest
import torch

from squeezeattention import POLICIES, SqueezeCache
from squeezeattention.hf.layout import inspect_model
from squeezeattention.testing import FAMILIES, NaiveReference, teacher_forced, tiny_model

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
    return [[rng.choice([5, 9, 17, 30, 60, rng.randint(5, 50)]) for _ in range(heads)] for _ in range(layers)]


@pytest.mark.parametrize("policy", POLICIES.names())
def test_ragged_heads_equal_the_reference(family, policy):
    """A left-padded batch, 64 steps; budgets hold after every one; in chunks too; bytes are those of the plan."""
    model, windows = family
    heads = kv_heads(model)
    rng = random.Random(f"{policy}{type(model).__name__}")
    budgets = ragged(rng, len(windows), heads)
    rows, generated = story(seed=5)
    cache = SqueezeCache(model, policy=policy, allocator=budgets)

    def held():
        for layer, (lengths, own) in enumerate(zip(cache.head_lengths(), budgets, strict=True)):
            for length, budget in zip(lengths, own, strict=True):
                assert length <= min(budget, windows[layer] or budget)

    ours = teacher_forced(model, cache, rows, generated, after_step=held)
    for index, row in enumerate(rows):
        reference = NaiveReference(model, policy, windows, heads)
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
