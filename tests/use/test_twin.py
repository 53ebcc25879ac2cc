"""One reading of a prompt, cut in many ways: a twin is what a cache made with its settings would be."""

import pytest
import torch

from squeezeattention import SqueezeCache
from squeezeattention.errors import BudgetError, CacheStateError, ConfigError
from squeezeattention.tasks.driving import forward, greedy, read
from squeezeattention.testing import tiny_model

IDS = torch.randint(3, 101, (1, 90), generator=torch.Generator().manual_seed(5))


def cuts(model, allocator, policy, ways):
    """The twins of one reading, uncut."""
    reader = SqueezeCache(model, 0.9, policy, allocator, new_tokens=8, min_tokens=1)
    with reader.prefilling():
        logits = forward(model, reader, IDS)
        return logits, [reader.twin(budget=budget, allocator=other) for budget, other in ways]


@pytest.mark.parametrize("policy", ["h2o", "streaming_llm"])
@pytest.mark.parametrize(
    ("allocator", "ways"),
    [
        ("probe", [(0.3, None), (0.5, "probe"), (0.3, "uniform"), (20, "pyramid")]),
        ("squeeze", [(0.2, None), (0.5, "uniform")]),
        ("uniform", [(0.2, None), (33, "uniform")]),
    ],
)
def test_twins_are_what_fresh_caches_are(allocator, policy, ways):
    model = tiny_model("llama")
    logits, twins = cuts(model, allocator, policy, ways)
    for (budget, other), twin in zip(ways, twins, strict=True):
        fresh = SqueezeCache(model, budget, policy, other or allocator, new_tokens=8, min_tokens=1)
        assert torch.equal(read(model, fresh, IDS[0].tolist()), logits)
        assert twin.plan == fresh.plan
        assert twin.memory().bytes == fresh.memory().bytes
        for layer in range(len(fresh.layers)):
            assert torch.equal(twin.kept_positions(layer), fresh.kept_positions(layer))
        assert greedy(model, twin, logits, 8) == greedy(model, fresh, logits, 8)


@pytest.mark.parametrize("prefill", ["whole", "pieces"])
def test_signals_that_watch_together_serve_twins_of_each(prefill):
    model = tiny_model("llama")
    reader = SqueezeCache(model, 0.3, "h2o", "probe", signal=["replay", "cosine", "span", "top_scores"], min_tokens=1)
    with reader.prefilling():
        for piece in IDS.split(90 if prefill == "whole" else 37, dim=1):
            logits = forward(model, reader, piece)
        twins = {name: reader.twin(allocator=name) for name in ("probe", "squeeze", "zigzag", "global", "uniform")}
        own = reader.twin(budget=0.2)
    for name, twin in twins.items():
        fresh = SqueezeCache(model, 0.3, "h2o", name, min_tokens=1)
        read(model, fresh, IDS[0].tolist(), chunk=90 if prefill == "whole" else 37)
        twin.compact()
        assert twin.plan == fresh.plan
        assert twin.plan.signal == fresh.plan.signal
        assert greedy(model, twin, logits, 8) == greedy(model, fresh, logits, 8)
    own.compact()
    assert own.plan.signal == reader.plan.signal == "replay"
    with pytest.raises(ConfigError, match="looked at 'replay' and 'cosine'"):
        SqueezeCache(model, 0.3, "h2o", "probe", signal=["replay", "cosine"]).twin(allocator="zigzag")
    for wrong in ([], ["replay", "replay"]):
        with pytest.raises(ConfigError, match="different names"):
            SqueezeCache(model, 0.3, "h2o", "probe", signal=wrong)


def test_a_twin_after_the_cut_takes_the_next_turn_under_its_own_plan():
    model = tiny_model("llama")
    cache = SqueezeCache(model, 0.3, "h2o", "probe", min_tokens=1)
    read(model, cache, IDS[0].tolist())
    twin = cache.twin(allocator=cache.plan)
    forward(model, twin, IDS[:, :10])
    assert twin.plan.budgets == cache.plan.budgets
    assert twin.plan.head_budgets == cache.plan.head_budgets
    assert cache.get_seq_length() == 90
    assert twin.get_seq_length() == 100


def test_what_a_twin_refuses():
    model = tiny_model("llama")
    cache = SqueezeCache(model, 0.3, "h2o", "uniform")
    with pytest.raises(ConfigError, match="looked at no signal"):
        cache.twin(allocator="probe")
    with pytest.raises(ConfigError, match="looked at 'cosine' only"):
        SqueezeCache(model, 0.3, "h2o", "squeeze").twin(allocator="probe")
    with pytest.raises(ConfigError, match="no effect"):
        cache.twin(budget=0.2, allocator=[20] * len(cache.layers))
    with pytest.raises(BudgetError):
        cache.twin(budget=-1)
    with cache.prefilling(90):  # layers are cut as the last piece is read
        forward(model, cache, IDS)
        with pytest.raises(CacheStateError, match="cut while the prompt was read"):
            cache.twin(budget=0.2)
    cache.detach()
    with pytest.raises(CacheStateError, match="detached"):
        cache.twin(budget=0.2)
