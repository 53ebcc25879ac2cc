"""Scorers that look at the last queries of a prompt do not pay for all of them: products are counted."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from squeezeattention import SqueezeCache
from squeezeattention.policies import POLICIES
from squeezeattention.testing import tiny_model


def products(policy, tokens):
    """Multiplications of matrix products while a prompt is read and cut."""
    model = tiny_model("llama", max_position_embeddings=2048)
    cache = SqueezeCache(model, 64, policy, "uniform")
    ids = torch.arange(tokens)[None] % 90 + 3
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, past_key_values=cache)
        cache.compact()
    return counter.get_total_flops() // 2


def extra(policy, tokens):
    return products(policy, tokens) - products("streaming_llm", tokens)


def all_keys(tokens):
    """Of one query a head with all tokens, in all layers."""
    config = tiny_model("llama").config
    return config.num_hidden_layers * config.hidden_size * tokens


@pytest.mark.parametrize("policy", ["snapkv", "tova", "defensivekv"])
def test_a_prompt_costs_the_last_queries_alone(policy):
    last = POLICIES.create(policy).last_queries * all_keys(512)
    # DefensiveKV also projects each token's value.
    assert last <= extra(policy, 512) <= last * (2 if policy == "defensivekv" else 1)
    assert extra(policy, 1024) <= 2 * extra(policy, 512)


def test_what_looks_at_all_queries_is_seen_to_pay():
    assert extra("h2o", 512) >= 512 * all_keys(512) // 2
