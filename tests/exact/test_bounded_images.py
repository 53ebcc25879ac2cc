"""A prompt with images in pieces: what goes with single tokens goes with their piece."""

import pytest
import torch
import transformers
from transformers import DynamicCache

from squeezeattention import SqueezeCache
from squeezeattention.errors import UnsupportedFeatureError
from squeezeattention.testing import tiny_model

from ..random_models import BEGIN, END, IMAGE, qwen3_vl

if not hasattr(transformers, "Qwen3VLForConditionalGeneration"):
    pytest.skip("this release has no Qwen3-VL", allow_module_level=True)

LENGTH = 48


@pytest.fixture(scope="module")
def model():
    return qwen3_vl(layers=4, depth=3, deepstack=[0, 1])


def prompts():
    """Two rows with an image each, at other places, the second padded on the left."""
    image = [BEGIN, *[IMAGE] * 16, END]
    rows = [[*range(3, 15), *image, *range(20, 38)], [*range(40, 46), *image, *range(50, 65)]]
    ids = torch.tensor([[0] * (LENGTH - len(row)) + row for row in rows])
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": ids, "attention_mask": (ids != 0).long(), "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.randn(128, 96, generator=generator), "image_grid_thw": torch.tensor([[1, 8, 8]] * 2),
    }  # fmt: skip


@pytest.mark.parametrize("piece", [5, 8, 20, 47])
def test_images_are_cut_with_their_tokens(model, piece):
    """A budget that holds all: pieces change nothing."""
    answer = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "output_logits": True,
              "return_dict_in_generate": True}  # fmt: skip
    want = model.generate(**prompts(), past_key_values=DynamicCache(config=model.config.text_config), **answer)
    cache = SqueezeCache(model, 400, "h2o", prefill="bounded", chunk_size=piece)
    got = model.generate(**prompts(), past_key_values=cache, **answer)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-5, rtol=0)
    assert cache.lengths() == [LENGTH + 3] * 4


def test_what_is_not_known_is_not_cut():
    model = tiny_model("llama")
    cache = SqueezeCache(model, 12, "h2o", prefill="bounded", chunk_size=8)
    ids = torch.arange(3, 43)[None]
    for unknown in (torch.ones(1, 40), [torch.ones(3, 4)], {"a": torch.ones(2)}):
        with pytest.raises(UnsupportedFeatureError, match="LlamaModel is given extra_features"):
            model(ids, past_key_values=cache, extra_features=unknown)
    assert cache.get_seq_length() == 0
    model(ids, past_key_values=cache)
    assert cache.lengths() == [12] * 4
