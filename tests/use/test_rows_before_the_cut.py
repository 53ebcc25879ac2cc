"""Rows that are chosen, or all padding, before the prompt has been cut."""

import pytest
import torch

from squeezeattention import SqueezeCache
from squeezeattention.errors import CacheStateError, UnsupportedModelError
from squeezeattention.testing import left_padded, position_ids, tiny_model

ROWS = [list(range(3, 63)), list(range(62, 2, -1))]


def read(policy, order, *, cut_before):
    model = tiny_model("llama")
    cache = SqueezeCache(model, budget=20, policy=policy, min_tokens=1)
    with torch.no_grad():
        model(torch.tensor(ROWS), past_key_values=cache)
    if cut_before:
        cache.compact()
    cache.batch_select_indices(torch.tensor(order))
    return cache.kept_positions(0), cache.plans


@pytest.mark.parametrize("order", [[1, 0], [1], [0, 0, 1, 1]], ids=str)
@pytest.mark.parametrize("policy", ["echo", "kvzip", "h2o", "snapkv"])
def test_plans_are_of_the_rows_that_read_the_prompt(policy, order):
    (got, plans), (want, expected) = (read(policy, order, cut_before=early) for early in (False, True))
    assert torch.equal(got, want)
    assert plans == expected


def test_not_in_the_middle_of_a_prompt_that_will_be_repeated():
    model = tiny_model("llama")
    cache = SqueezeCache(model, budget=20)
    with torch.no_grad(), cache.prefilling():
        model(torch.tensor(ROWS), past_key_values=cache)
        with pytest.raises(CacheStateError, match="leave prefilling"):
            cache.batch_select_indices(torch.tensor([1]))


@pytest.mark.parametrize("policy", ["h2o", "streaming_llm"])
def test_a_row_is_all_padding_in_the_first_piece(policy):
    ids, mask = left_padded([ROWS[0], [5] * 5])
    model = tiny_model("llama")
    cache = SqueezeCache(model, budget=20, policy=policy, prefill="bounded", chunk_size=16, min_tokens=1)
    with torch.no_grad(), cache.prefilling():
        for start in range(0, 60, 20):
            piece = slice(start, start + 20)
            given = {"attention_mask": mask[:, : start + 20], "position_ids": position_ids(mask)[:, piece]}
            model(ids[:, piece], past_key_values=cache, **given)
    assert max(cache.lengths()) <= 20
    held = cache.kept_positions(0)[1]
    assert sorted(held[held >= 0].unique().tolist()) == [0, 1, 2, 3, 4]


def test_a_decoder_that_keeps_an_encoders_keys_around_its_cache_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=101, add_cross_attention=True))
    with pytest.raises(UnsupportedModelError, match="add_cross_attention"):
        SqueezeCache(model.eval(), budget=20)
