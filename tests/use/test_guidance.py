"""Classifier-free guidance: both texts that it reads are squeezed."""

import pytest
import torch
from transformers import DynamicCache
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor as Guidance

from squeezeattention import SqueezeCache, squeeze
from squeezeattention.hf.arguments import CACHE_ARGUMENTS
from squeezeattention.testing import tiny_model

IDS = torch.arange(40)[None] * 7 % 90 + 3
OTHER = torch.arange(30)[None] * 11 % 90 + 3
ANSWER = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "output_scores": True,
          "guidance_scale": 2.0, "return_dict_in_generate": True}  # fmt: skip


@pytest.fixture
def branches(monkeypatch):
    """The contexts of the unconditional texts that are read."""
    found, read = [], Guidance.get_unconditional_logits

    def noting(processor, input_ids):
        found.append(processor.unconditional_context)
        return read(processor, input_ids)

    monkeypatch.setattr(Guidance, "get_unconditional_logits", noting)
    return found


def cache_name(branch):
    """What this release calls the cache in a branch: `past_key_values` or `cache`."""
    return next(name for name in CACHE_ARGUMENTS if name in branch)


@pytest.mark.parametrize("prompt", [{}, {"negative_prompt_ids": OTHER}], ids=["last token", "negative prompt"])
@pytest.mark.parametrize("policy", ["streaming_llm", "h2o", "echo"])
def test_a_budget_that_holds_both_is_exact(policy, prompt, branches):
    model = tiny_model("llama")
    want = model.generate(IDS, past_key_values=DynamicCache(config=model.config), **prompt, **ANSWER)
    assert isinstance(branches[-1][cache_name(branches[-1])], DynamicCache)
    cache = SqueezeCache(model, 60, policy)
    got = model.generate(IDS, past_key_values=cache, **prompt, **ANSWER)
    torch.testing.assert_close(torch.stack(got.scores), torch.stack(want.scores), atol=1e-4, rtol=0)
    beside = branches[-1][cache_name(branches[-1])]
    assert isinstance(beside, SqueezeCache)
    assert beside.lengths() == [(30 if prompt else 1) + 11] * 4


@pytest.mark.parametrize("handle", [True, False])
def test_the_unconditional_text_has_the_budget(handle, branches):
    """Its logits are those of the same text with a cache of its own."""
    model = tiny_model("llama")
    settings = {"budget": 12, "policy": "h2o", "allocator": "uniform"}
    if handle:
        with squeeze(model, **settings) as squeezed:
            got = model.generate(IDS, negative_prompt_ids=OTHER, **ANSWER)
            assert squeezed.cache.lengths() == [12] * 4
    else:
        got = model.generate(IDS, negative_prompt_ids=OTHER, past_key_values=SqueezeCache(model, **settings), **ANSWER)
    beside = branches[-1][cache_name(branches[-1])]
    assert beside.lengths() == [12] * 4
    assert beside.get_seq_length() == 30 + 11
    texts = {False: SqueezeCache(model, **settings), True: SqueezeCache(model, **settings)}
    fed = {False: IDS, True: OTHER}
    for token, scores in zip(got.sequences[0, 40:], got.scores, strict=True):
        with torch.no_grad():
            with_prompt, without = (
                model(fed[other], past_key_values=texts[other]).logits[:, -1].log_softmax(-1) for other in (False, True)
            )
        want = without + 2 * (with_prompt - without)
        shown = scores > -1e30  # the end is not to be chosen yet
        torch.testing.assert_close(scores[shown], want[shown], atol=1e-4, rtol=0)
        fed = dict.fromkeys(fed, token[None, None])


def test_a_cache_of_the_users_own_stays(branches):
    model = tiny_model("llama")
    own = Guidance(2.0, model, OTHER)
    name = cache_name(own.unconditional_context)
    own.unconditional_context[name] = held = DynamicCache(config=model.config)
    answer = {name: value for name, value in ANSWER.items() if name != "guidance_scale"}
    model.generate(IDS, past_key_values=SqueezeCache(model, 12, "h2o"), logits_processor=[own], **answer)
    assert branches[-1][name] is held
