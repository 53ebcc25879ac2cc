"""Continuous batching has a cache of its own: refused while ours are on the model, untouched when they are gone."""

import pytest
from transformers import GenerationConfig

from squeezeattention import SqueezeCache, squeeze
from squeezeattention.errors import UnsupportedFeatureError
from squeezeattention.testing import tiny_model

PROMPTS = [list(range(3, 20)), list(range(5, 15))]
CONFIG = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)

if not hasattr(type(tiny_model("llama")), "init_continuous_batching"):
    pytest.skip("this release has no continuous batching", allow_module_level=True)


@pytest.fixture
def model():
    return tiny_model("llama", num_hidden_layers=2)


@pytest.mark.parametrize("use", [SqueezeCache, squeeze])
def test_it_is_refused_while_the_model_is_attached_to(model, use):
    held = use(model, budget=12)
    for call in (
        lambda: model.generate_batch(PROMPTS, generation_config=CONFIG),
        lambda: model.init_continuous_batching(generation_config=CONFIG),
        lambda: model.continuous_batching_context_manager(generation_config=CONFIG).__enter__(),
    ):
        with pytest.raises(UnsupportedFeatureError, match=r"continuous batching .* detach"):
            call()
    held.detach()
    assert "init_continuous_batching" not in vars(model)


def test_it_is_there_again_when_they_are_gone(model):
    for _ in range(2):
        assert model.init_continuous_batching(generation_config=CONFIG).model is model
        SqueezeCache(model, budget=12).detach()
    assert model.config._attn_implementation == "sdpa"
