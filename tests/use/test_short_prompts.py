"""A share of a short prompt leaves room for the prompt and an answer, and the plan says so."""

import pytest
import torch

from squeezeattention import POLICIES, SqueezeCache, squeeze
from squeezeattention.defaults import MIN_TOKENS
from squeezeattention.errors import ConfigError
from squeezeattention.testing import rules_for, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def generate(model, ids, cache, new):
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=new, min_new_tokens=new,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("length", [1, 4, 21])
def test_defaults_keep_a_short_prompt_and_its_answer(model, policy, length):
    ids = torch.arange(3, 3 + length)[None]
    want = generate(model, ids, None, 30)
    cache = SqueezeCache(model, policy=policy)
    assert generate(model, ids, cache, 30).tolist() == want.tolist()
    assert cache.lengths() == [length + 29] * 4
    assert cache.plan.base_budget == MIN_TOKENS
    assert any(f"min_tokens={MIN_TOKENS}" in text for text in cache.plan.warnings)
    assert "nothing saved" in str(cache.memory())


@pytest.mark.parametrize("allocator", rules_for())
def test_a_share_never_goes_below_the_floor(model, allocator):
    """On average: what a layer gets is the allocator's choice."""
    for length, asked in ((40, 20), (200, 40), (90, 20)):
        ids = torch.randint(3, 101, (1, length), generator=torch.Generator().manual_seed(length))
        cache = SqueezeCache(model, budget=0.2, allocator=allocator, min_tokens=asked)
        generate(model, ids, cache, 8)
        assert cache.plan.base_budget == max(asked, round(0.2 * length))
        assert cache.plan.total == 4 * cache.plan.base_budget
        told = any("min_tokens" in text for text in cache.plan.warnings)
        assert told is (asked > round(0.2 * length))


def test_tokens_and_bytes_mean_what_they_say(model):
    ids = torch.arange(3, 43)[None]
    for budget, allocator in ((8, "uniform"), ("4096B", "uniform"), (None, [8] * 4)):
        cache = SqueezeCache(model, budget, "streaming_llm", allocator)
        generate(model, ids, cache, 8)
        assert cache.lengths() == [8] * 4
        assert cache.plan.warnings == ()


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("allocator", ["uniform", "squeeze", "zigzag"])
def test_all_of_it_holds_the_answer_too(model, policy, allocator):
    ids = torch.arange(3, 93)[None]
    want = generate(model, ids, None, 30)
    with squeeze(model, budget=1.0, policy=policy, allocator=allocator) as squeezed:
        assert generate(model, ids, None, 30).tolist() == want.tolist()
        assert squeezed.cache.lengths() == [119] * 4


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "8", None])
def test_bad_floors(model, count):
    with pytest.raises(ConfigError, match="min_tokens must be"):
        SqueezeCache(model, min_tokens=count)
