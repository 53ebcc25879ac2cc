"""Random models that are no families of squeezeattention.testing."""

import pytest
import torch
import transformers

IMAGE, BEGIN, END = 100, 102, 103


def spread(model):
    """The model with weights that are drawn wide enough for attention to be peaked."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.9 * parameter.shape[-1] ** -0.5)
    return model


def qwen3_vl(*, layers, depth, deepstack):
    """A tiny Qwen3-VL of so many layers of text and of images; skips where this release of transformers has none."""
    if not hasattr(transformers, "Qwen3VLForConditionalGeneration"):
        pytest.skip("this release has no Qwen3-VL")
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "head_dim": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "rope_parameters": rope,
        },
        vision_config={
            "depth": depth, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "num_position_embeddings": 64,
            "deepstack_visual_indexes": deepstack,
        },
        image_token_id=IMAGE, video_token_id=101, vision_start_token_id=BEGIN, vision_end_token_id=END,
    )  # fmt: skip
    return transformers.Qwen3VLForConditionalGeneration(config).eval()
