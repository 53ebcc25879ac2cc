"""Layers that are put into a model, or taken out, while a cache lives: never a silently different text."""

import copy

import pytest
import torch
from transformers import DynamicCache

from squeezeattention import SqueezeCache
from squeezeattention.errors import CacheStateError
from squeezeattention.testing import tiny_model

IDS = torch.randint(3, 101, (2, 40), generator=torch.Generator().manual_seed(9))


def replace(model):
    """As whoever tries one layer in another's place does: the copy is that of an untouched model's layer."""
    layers = model.model.layers
    layers[1] = copy.deepcopy(layers[3])
    layers[1].self_attn.layer_idx = 1


def remove(model):
    del model.model.layers[3]
    model.config.num_hidden_layers = 3
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:3]


def read(model, cache):
    with torch.no_grad():
        parts = [IDS[:, :30], IDS[:, 30:31], IDS[:, 31:32], IDS[:, 32:]]
        return torch.cat([model(input_ids=part, past_key_values=cache).logits for part in parts], dim=1)


@pytest.mark.parametrize("change", [replace, remove])
@pytest.mark.parametrize("settings", [("echo", "global"), ("h2o", "uniform"), ("h2o", "squeeze")], ids="/".join)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_layer_that_does_not_attend_to_the_cache_is_an_error(family, settings, change):
    model = tiny_model(family)
    options = dict(zip(("policy", "allocator"), settings, strict=True))
    cache = SqueezeCache(model, budget=400, **options)
    read(model, cache)
    cache.reset()
    change(model)
    for _ in range(2):
        with pytest.raises(CacheStateError, match=r"layer.*replaced, removed or skipped.*detach\(\)"):
            model(input_ids=IDS, past_key_values=cache)
        cache.reset()
    want = read(model, DynamicCache(config=model.config))
    cache.detach()  # the advice is true
    got = read(model, SqueezeCache(model, budget=400, **options))
    assert (got - want).abs().max() < 1e-4


def test_a_layer_that_is_changed_in_the_middle_of_a_text():
    model = tiny_model("llama")
    cache = SqueezeCache(model, budget=400, policy="h2o", allocator="uniform")
    read(model, cache)
    replace(model)
    with pytest.raises(CacheStateError, match="layer 1 of the model did not attend"):
        model(input_ids=IDS[:, :1], past_key_values=cache)
    with pytest.raises(CacheStateError, match="unusable because the model's layers"):
        model(input_ids=IDS[:, :1], past_key_values=cache)
