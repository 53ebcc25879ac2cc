"""A model that lets another one inside it generate (BLIP-2), and cannot read text without an image."""

import pytest
import torch
import transformers

from squeezeattention import SqueezeCache, squeeze
from squeezeattention.errors import UnsupportedModelError
from squeezeattention.hf import attachment

from ..random_models import spread

LENGTH = 38
ANSWER = {
    "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "output_logits": True,
    "return_dict_in_generate": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Blip2Config(
        vision_config={**small, "image_size": 28, "patch_size": 14},
        qformer_config={**small, "encoder_hidden_size": 32, "vocab_size": 200},
        text_config={
            "model_type": "opt", "vocab_size": 200, "hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256, "dropout": 0.0,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        },
        num_query_tokens=8, image_token_index=199,
    )  # fmt: skip
    torch.manual_seed(0)
    return spread(transformers.Blip2ForConditionalGeneration(config).eval())


def given():
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, 180, (2, LENGTH - 8), generator=generator)
    ids = torch.cat([torch.full((2, 8), 199), text], dim=1)
    pixels = torch.randn(2, 3, 28, 28, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@pytest.mark.parametrize("allocator", ["probe", "squeeze"])
@pytest.mark.parametrize("how", ["cache", "squeeze"])
def test_it_is_squeezed(model, how, allocator):
    """A budget that holds all: what the stock cache gives."""
    want = torch.stack(model.generate(**given(), **ANSWER).logits)
    settings = {"budget": 100, "policy": "h2o", "allocator": allocator}
    if how == "cache":
        cache = SqueezeCache(model, **settings)
        got = model.generate(**given(), past_key_values=cache, **ANSWER)
        assert cache.lengths() == [LENGTH + 7] * 2
    else:
        with squeeze(model, **settings) as squeezed:
            got = model.generate(**given(), **ANSWER)
            assert squeezed.cache.lengths() == [LENGTH + 7] * 2
    torch.testing.assert_close(torch.stack(got.logits), want, atol=1e-4, rtol=0)


def test_a_model_that_reads_no_text_alone_is_told_what_would_do(model, monkeypatch):
    def wants_more(*args, **kwargs):
        raise ValueError("you must specify something else")

    monkeypatch.setattr(model, "forward", wants_more)
    monkeypatch.setattr(model.language_model.model.decoder, "forward", wants_more)
    attachment._SPOTS.pop(model.language_model.model.decoder, None)  # as if never looked at
    with pytest.raises(UnsupportedModelError, match=r'something else.*"probe", "uniform"'):
        SqueezeCache(model, 100, "h2o", "squeeze")
    SqueezeCache(model, 100, "h2o", "probe")
