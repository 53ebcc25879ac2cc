"""A prompt with images in pieces: what goes with single tokens goes with their piece."""

import pytest
import torch
import transformers
from transformers import DynamicCache

from squeezeattention import SqueezeCache
from squeezeattention.errors import UnsupportedFeatureError
from squeezeattention.testing import tiny_model

if not hasattr(transformers, "Qwen3VLForConditionalGeneration"):
    pytest.skip("this release has no Qwen3-VL", allow_module_level=True)

IMAGE, BEGIN, END = 100, 102, 103
LENGTH = 48


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "rope_parameters": rope,
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=IMAGE, video_token_id=101, vision_start_token_id=BEGIN, vision_end_token_id=END,
    )  # fmt: skip
    return transformers.Qwen3VLForConditionalGeneration(config).eval()


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
