"""Texts whose positions do not count their tokens: those of an image (mRoPE), or as the user says."""

import pytest
import torch
from transformers import DynamicCache

from squeezeattention import SqueezeCache
from squeezeattention.errors import UnsupportedFeatureError
from squeezeattention.policies import StreamingLLM
from squeezeattention.testing import tiny_model

from ..random_models import BEGIN, END, IMAGE, qwen3_vl, spread

TEXT = [*range(3, 15), BEGIN, *[IMAGE] * 16, END, *range(20, 38)]
LATER = torch.arange(40, 52)[None]
BY_COUNTING = {
    "expected_attention": {"policy": "expected_attention"},
    "moved sinks": {"policy": StreamingLLM(positions="cache"), "allocator": "uniform"},
}


def vision_model():
    return spread(qwen3_vl(layers=2, depth=1, deepstack=[0]))


def prompt():
    ids = torch.tensor([TEXT])
    pixels = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": ids, "mm_token_type_ids": (ids == IMAGE).int(), "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 8, 8]]),
    }  # fmt: skip


@torch.no_grad()
def goes_on(model, cache):
    """Steps, and a further turn of text, by hand."""
    parts = [LATER[:, at : at + 1] for at in range(5)] + [LATER[:, 5:]]
    return torch.cat([model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in parts], dim=1)


def test_a_saved_text_with_an_image_goes_on_in_another_model(tmp_path):
    """Such models keep on themselves how far positions are behind columns; held against the stock cache."""
    model, other = vision_model(), vision_model()
    cache, stock = SqueezeCache(model, budget=400), DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(**prompt(), past_key_values=stock, use_cache=True)
    want = goes_on(model, stock)
    with torch.no_grad():
        model(**prompt(), past_key_values=cache, use_cache=True)
        model(input_ids=LATER, use_cache=True)  # the model has read another text since
        model.generate(LATER, max_new_tokens=2, pad_token_id=0)
    cache.save(tmp_path / "cache")
    loaded = SqueezeCache.load(other, tmp_path / "cache")
    torch.testing.assert_close(goes_on(other, loaded), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("what", BY_COUNTING)
def test_keys_that_are_turned_by_counting_tokens_need_tokens_that_count(what):
    model = vision_model()
    cache = SqueezeCache(model, 20, **BY_COUNTING[what])
    with torch.no_grad(), pytest.raises(UnsupportedFeatureError, match="turns keys by counting tokens"):
        model(**prompt(), past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 0
    ids = torch.tensor([[0, 0, *range(3, 40)], [*range(41, 80)]])
    options = {"max_new_tokens": 3, "pad_token_id": 0, "do_sample": False}
    text = model.generate(ids, attention_mask=(ids != 0).long(), past_key_values=cache, **options)
    assert cache.get_seq_length() == text.shape[1] - 1


@pytest.mark.parametrize("what", BY_COUNTING)
def test_positions_that_a_user_gives(what):
    """From another number on is fine, and nothing changes but by rounding; with a gap is not."""
    model, ids = tiny_model("llama"), torch.arange(3, 63)[None]
    found = []
    for first in (0, 50):
        cache = SqueezeCache(model, 20, **BY_COUNTING[what])
        at = torch.arange(60)[None] + first
        with torch.no_grad():
            model(ids, position_ids=at, past_key_values=cache)
            found.append(model(ids[:, :1], position_ids=at[:, -1:] + 1, past_key_values=cache).logits)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)
    cache.reset()
    at[:, 30:] += 7
    with torch.no_grad(), pytest.raises(UnsupportedFeatureError, match="do not count them one by one"):
        model(ids, position_ids=at, past_key_values=cache)


@pytest.mark.parametrize("settings", [{}, {"policy": "kvzip"}, {"policy": "h2o", "allocator": "probe"}])
def test_a_prompt_is_repeated_behind_itself_wherever_it_is(settings):
    """Rotary embeddings know distances only: the same tokens are kept of a text that begins elsewhere."""
    model, ids = tiny_model("llama"), torch.randint(3, 100, (2, 120), generator=torch.Generator().manual_seed(2))
    kept = []
    for first in (0, 200):
        cache = SqueezeCache(model, 30, **settings)
        at = torch.arange(120)[None].repeat(2, 1) + torch.tensor([[first], [first // 2]])
        with torch.no_grad(), cache.prefilling():
            model(ids[:, :70], position_ids=at[:, :70], past_key_values=cache)
            model(ids[:, 70:], position_ids=at[:, 70:], past_key_values=cache)
        kept.append(
            (cache.head_lengths(0), cache.head_lengths(1), [cache.kept_positions(n).tolist() for n in range(4)])
        )
    assert kept[0] == kept[1]


@pytest.mark.parametrize("by_generate", [False, True])
def test_a_prompt_with_an_image_is_repeated_at_the_positions_that_follow(by_generate):
    model, given = vision_model(), []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["position_ids"]), with_kwargs=True
    )
    cache = SqueezeCache(model, 20)
    if by_generate:
        model.generate(**prompt(), past_key_values=cache, max_new_tokens=2, pad_token_id=0)
    else:
        with torch.no_grad():
            model(**prompt(), past_key_values=cache)
        cache.compact()
    read, repeated = given[:2]
    assert repeated.min() == read[-3:].max() + 1 < len(TEXT)
