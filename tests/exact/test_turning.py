"""Rotary frequencies that depend on the text's length: nothing is silently turned as in a shorter or longer text."""

import pytest
import torch
from transformers import DynamicCache

from squeezeattention import SqueezeCache
from squeezeattention.errors import UnsupportedFeatureError
from squeezeattention.testing import tiny_model

LIMIT = 32
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 1e4,
    "original_max_position_embeddings": LIMIT,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


def model_of(kind):
    if kind == "dynamic":
        return tiny_model("llama", max_position_embeddings=LIMIT, rope_parameters=dict(DYNAMIC))
    given = {"max_position_embeddings": 128, "original_max_position_embeddings": LIMIT}
    return tiny_model("phi3", rope_parameters=dict(LONGROPE), **given)


def logits(model, cache, ids, new):
    with torch.no_grad():
        found = [model(ids, past_key_values=cache, use_cache=True).logits]
        for index in range(new.shape[1]):
            found.append(model(new[:, index : index + 1], past_key_values=cache, use_cache=True).logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("policy", ["echo", "h2o", "kvzip"])
@pytest.mark.parametrize("length", [LIMIT - 6, LIMIT + 2, 2 * LIMIT])
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_repeating_the_prompt_is_no_part_of_the_text(kind, length, policy):
    ids, new = torch.arange(length)[None] % 90 + 3, torch.tensor([[7, 8, 9]])
    want = logits(model := model_of(kind), DynamicCache(config=model.config), ids, new)
    got = logits(model := model_of(kind), SqueezeCache(model, budget=400, policy=policy), ids, new)
    assert (got - want).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_pieces_of_a_text_that_outgrows_its_frequencies_are_refused(kind):
    model = model_of(kind)
    ids = torch.arange(LIMIT + 1)[None] % 90 + 3
    cache = SqueezeCache(model, budget=400, policy="h2o", prefill="bounded", chunk_size=8)
    with pytest.raises(UnsupportedFeatureError, match=f'{LIMIT} tokens.*prefill="exact"'), torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
    cache = SqueezeCache(model, budget=400, policy="h2o", prefill="bounded", chunk_size=8)
    want = logits(model, DynamicCache(config=model.config), ids[:, :LIMIT], ids[:, :0])
    assert (logits(model, cache, ids[:, :LIMIT], ids[:, :0]) - want).abs().max() <= 1e-4
