"""The only row of a batch, padded or not, and budgets of exactly its length."""

import pytest
import torch
from transformers import DynamicCache

from squeezeattention import POLICIES, SqueezeCache
from squeezeattention.errors import UnsupportedFeatureError, UnsupportedModelError
from squeezeattention.testing import tiny_model

PROMPT, NEW = 40, 6
FAMILIES = {
    "llama": {}, "one head": {"num_key_value_heads": 1}, "mistral-window": {}, "gemma2": {}, "gpt-oss": {},
    "deepseek-v3": {},
}  # fmt: skip


def model_of(family):
    eager = {"attn_implementation": "eager"} if family == "gemma2" else {}
    return tiny_model("llama" if family == "one head" else family, **FAMILIES[family], **eager)


def story(model, cache, pads, how):
    """Logits of a prompt behind so many columns of padding, of tokens one by one, and of a later turn, padded too."""
    generator = torch.Generator().manual_seed(1)
    prompt, new, turn = (torch.randint(3, 101, (1, length), generator=generator) for length in (PROMPT, NEW, 9))
    mask, found = torch.ones(1, 0, dtype=torch.long), []

    def read(ids, pads=0):
        nonlocal mask
        ids = torch.cat([torch.zeros(1, pads, dtype=torch.long), ids], dim=1)
        fresh = torch.ones_like(ids)
        fresh[:, :pads] = 0
        mask = torch.cat([mask, fresh], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        found.append(out.logits[:, pads:])

    with torch.no_grad():
        if how == "chunks":
            with cache.prefilling():
                read(prompt[:, :20], pads)
                read(prompt[:, 20:30])
                read(prompt[:, 30:])
        else:
            read(prompt, pads)
        for index in range(NEW):
            if how == "turns" and index == 3:
                read(turn, pads)
            read(new[:, index : index + 1])
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("how", ["whole", "chunks", "turns"])
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("policy", list(POLICIES))
def test_padding_beside_no_other_row(family, policy, how):
    """What is hidden stays so: with room for all the numbers are the stock cache's, with less those without padding."""
    model = model_of(family)
    for budget, allocator in ((400, "uniform"), (24, "uniform"), (24, "squeeze")):
        options = {"budget": budget, "policy": policy, "allocator": allocator, "min_tokens": 1}
        try:
            plain = SqueezeCache(model, **options)
            got = [story(model, SqueezeCache(model, **options), pads, how) for pads in (1, 13)]
        except (UnsupportedModelError, UnsupportedFeatureError) as refused:
            pytest.skip(str(refused))
        if budget == 400:
            whole = "whole" if how == "chunks" else how
            want = story(model, DynamicCache(config=model.config), 0, whole)
        else:
            want = story(model, plain, 0, how)
        assert max((one - want).abs().max().item() for one in got) <= 1e-4


@pytest.mark.parametrize("family", ["llama", "one head", "deepseek-v3"])
@pytest.mark.parametrize("policy", ["h2o", "streaming_llm", "tova"])
def test_layers_that_the_prompt_just_fills(family, policy):
    """Each layer writes positions of its own: no layer evicts from another one's."""
    model = model_of(family)
    budgets = [PROMPT, PROMPT, 8, 8][: model.config.num_hidden_layers]
    cache = SqueezeCache(model, policy=policy, allocator=budgets)
    story(model, cache, 0, "whole")
    for layer in range(2):
        for held in cache.kept_positions(layer).flatten(0, 1).tolist():
            assert len(set(held)) == PROMPT
            assert max(held) == PROMPT + NEW - 1
