"""Where the budget holds the whole text nothing is evicted, however it goes on; and no more is held than is used."""

import pytest
import torch
from transformers import DynamicCache

from squeezeattention import POLICIES, SqueezeCache
from squeezeattention.testing import left_padded, position_ids, tiny_model

IDS = torch.randint(3, 101, (1, 70), generator=torch.Generator().manual_seed(5))
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["llama", "qwen3-window"])
def model(request):
    return tiny_model(request.param)


def generate(model, ids, cache, new):
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=new, min_new_tokens=new,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip


def read(model, cache, ids, *stops, mask=None):
    """Logits of a text read by hand up to each of ``stops``, one forward each."""
    found, start = [], cache.get_seq_length()
    with torch.no_grad():
        for stop in stops:
            given = {} if mask is None else {
                "attention_mask": mask[:, :stop], "position_ids": position_ids(mask[:, :stop])[:, start:stop],
            }  # fmt: skip
            found.append(model(ids[:, start:stop], past_key_values=cache, use_cache=True, **given).logits)
            start = stop
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("budget", [400, 1.0])
@pytest.mark.parametrize("policy", POLICIES.names())
def test_a_text_that_goes_on_by_hand_after_generate(model, policy, budget):
    """Decode steps, and a later turn, beyond the length that ``generate`` had told."""
    stock, cache = DynamicCache(config=model.config), SqueezeCache(model, budget, policy)
    for each in (stock, cache):
        generate(model, IDS[:, :40], each, 1)
    steps = (*range(41, 52), 60, *range(61, 71))
    torch.testing.assert_close(read(model, cache, IDS, *steps), read(model, stock, IDS, *steps), atol=TOLERANCE, rtol=0)
    assert max(cache.lengths()) == 70
    assert max(cache.plan.budgets) >= 70


@pytest.mark.parametrize("policy", ["h2o", "streaming_llm", "snapkv"])
def test_asking_for_the_memory_changes_nothing_of_a_later_turn(model, policy):
    """It gives spare room back, and nothing else: keys, positions and scores stay side by side."""
    cache = SqueezeCache(model, 400, policy, "uniform")
    got = [read(model, cache, IDS, 40, *range(41, 47))]
    cache.memory()
    got.append(read(model, cache, IDS, 58, *range(59, 64)))
    cache.memory()
    got.append(read(model, cache, IDS, *range(64, 71)))
    want = read(model, DynamicCache(config=model.config), IDS, 70)
    torch.testing.assert_close(torch.cat(got, dim=1), want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("policy", ["h2o", "streaming_llm", "echo"])
def test_the_whole_text_by_hand_with_rows_of_different_lengths(model, policy):
    ids, mask = left_padded([IDS[0].tolist(), IDS[0, 30:].tolist(), IDS[0, 11:].tolist()])
    stock, cache = DynamicCache(config=model.config), SqueezeCache(model, 1.0, policy)
    steps = (45, *range(46, 58), 64, *range(65, 71))
    want, got = (read(model, each, ids, *steps, mask=mask) for each in (stock, cache))
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], atol=TOLERANCE, rtol=0)
    assert [plan.base_budget for plan in cache.plans] == [70, 64, 64]


@pytest.mark.parametrize("budget", [400, 59, 60, 0.99, 1.0])
@pytest.mark.parametrize("policy", POLICIES.names())
def test_no_more_bytes_than_a_full_cache(model, policy, budget):
    cache = SqueezeCache(model, budget, policy)
    generate(model, IDS[:, :40], cache, 20)
    memory = cache.memory()
    assert memory.bytes <= memory.full_bytes
    read(model, cache, IDS, *range(60, 63))  # room that was given back is made anew
    assert cache.get_seq_length() == 62
    assert cache.memory().bytes <= cache.memory().full_bytes
