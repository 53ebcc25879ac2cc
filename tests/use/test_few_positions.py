"""Prompts that are repeated by models with a table of positions, which have none left behind the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForCausalLM, DynamicCache, GPT2Config, GPT2LMHeadModel

from squeezeattention import SqueezeCache

LONGEST = 64


def bart() -> Any:
    """Its decoder takes no position_ids: it counts from what the cache has seen."""
    return BartForCausalLM(
        BartConfig(
            vocab_size=97, d_model=32, decoder_layers=3, decoder_attention_heads=4, decoder_ffn_dim=32,
            max_position_embeddings=LONGEST, is_decoder=True, is_encoder_decoder=False,
        )
    )  # fmt: skip


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=LONGEST))


@pytest.mark.parametrize("make", [bart, gpt2])
@pytest.mark.parametrize("policy", ["echo", "kvzip", "h2o"])
@pytest.mark.parametrize("tokens", [10, 31, LONGEST - 2])
def test_a_prompt_is_repeated_where_there_are_positions(make: Any, policy: str, tokens: int) -> None:
    torch.manual_seed(0)
    model = make().eval()
    ids = torch.randint(0, 97, (2, LONGEST))
    stock, cache = DynamicCache(config=model.config), SqueezeCache(model, budget=LONGEST, policy=policy)
    for piece in (ids[:, :tokens], ids[:, tokens : tokens + 1], ids[:, tokens + 1 : tokens + 2]):
        with torch.no_grad():
            want = model(piece, past_key_values=stock).logits
            got = model(piece, past_key_values=cache).logits
        assert (got - want).abs().max() <= 1e-4
    assert cache.plan is not None
