"""Tokens that others put in front of a prompt, which ``generate`` does not know of: PEFT's prompt and prefix tuning."""

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from squeezeattention import SqueezeCache, squeeze
from squeezeattention.errors import CacheStateError, InputError, UnsupportedFeatureError
from squeezeattention.hf import compat
from squeezeattention.testing import position_ids, tiny_model

VIRTUAL, PROMPT, NEW = 7, 30, 6
IDS = torch.arange(PROMPT)[None] * 7 % 90 + 3
ANSWER = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "output_logits": True,
          "return_dict_in_generate": True}  # fmt: skip
POLICIES = ["streaming_llm", "h2o", "echo"]


class Tuned(LlamaForCausalLM):
    """Embeddings in front of the first forward's, a mask that is longer by them, and no position_ids."""

    prefix = False

    def virtual(self, rows):
        generator = torch.Generator().manual_seed(5)
        return torch.randn(1, VIRTUAL, self.config.hidden_size, generator=generator).expand(rows, -1, -1)

    def prepare_inputs_for_generation(self, input_ids, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        name = compat.generate_cache_name()
        cache, ids = inputs[name], inputs["input_ids"]
        if cache.get_seq_length() >= ids.shape[1]:
            inputs["input_ids"] = ids = ids[:, -1:]
        inputs["position_ids"] = None
        if inputs.get("attention_mask") is not None:
            ones = torch.ones(len(ids), VIRTUAL)
            inputs["attention_mask"] = torch.cat([ones, inputs["attention_mask"]], dim=1)
        if not cache.get_seq_length() and self.prefix:
            _ = cache.max_cache_len if not isinstance(cache, DynamicCache) else -1
            inputs[name] = DynamicCache(config=self.config)
        elif not cache.get_seq_length():
            own = self.get_input_embeddings()(ids)
            inputs["inputs_embeds"] = torch.cat([self.virtual(len(ids)), own], dim=1)
            inputs["input_ids"] = None
        return inputs


def tuned(family="llama", **attributes):
    model = tiny_model(family)
    model.__class__ = Tuned if family == "llama" else type("Tuned", (Tuned, type(model)), {})
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def batch():
    ids = torch.cat([IDS, IDS.flip(1)])
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("prefill", [{}, {"prefill": "bounded", "chunk_size": 8}], ids=["exact", "bounded"])
@pytest.mark.parametrize("given", [{"input_ids": IDS}, batch()], ids=["one", "padded"])
def test_a_budget_that_holds_them_is_exact(given, policy, prefill):
    model = tuned()
    want = model.generate(**given, past_key_values=DynamicCache(config=model.config), **ANSWER)
    cache = SqueezeCache(model, VIRTUAL + PROMPT + NEW - 1, policy, **prefill)
    got = model.generate(**given, past_key_values=cache, **ANSWER)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-5, rtol=0)
    assert cache.lengths() == [VIRTUAL + PROMPT + NEW - 1] * 4


@pytest.mark.parametrize("prefill", [{}, {"prefill": "bounded", "chunk_size": 8}], ids=["exact", "bounded"])
def test_they_count(prefill):
    """As tokens of the prompt that a share is of, and of the text that a layer can use."""
    model = tuned()
    with squeeze(model, budget=VIRTUAL + PROMPT + 1, policy="h2o", allocator="uniform", **prefill) as squeezed:
        model.generate(IDS, **ANSWER)
        assert squeezed.cache.lengths() == [VIRTUAL + PROMPT + 1] * 4
    with squeeze(model, budget=0.5, min_tokens=1, policy="h2o", allocator="uniform", **prefill) as squeezed:
        model.generate(IDS, **ANSWER)
        assert squeezed.plan.prompt_tokens == VIRTUAL + PROMPT
        assert squeezed.cache.lengths() == [19] * 4  # half of 37
        with pytest.raises(UnsupportedFeatureError, match=f"began with {VIRTUAL} tokens"):
            model.generate(torch.cat([IDS] * 3, dim=1), past_key_values=squeezed.cache, **ANSWER)


@pytest.mark.parametrize("policy", [*POLICIES, "snapkv"])
def test_padding_behind_them_changes_nothing_for_a_row(policy):
    model = tiny_model("llama")
    given = batch()
    front = Tuned.virtual(model, 2)
    embeddings = torch.cat([front, model.get_input_embeddings()(given["input_ids"])], dim=1).detach()
    mask = torch.cat([torch.ones(2, VIRTUAL, dtype=torch.int64), given["attention_mask"]], dim=1)

    def read(embeddings, mask):
        cache = SqueezeCache(model, 16, policy, allocator="uniform")
        with torch.no_grad():
            found = model(
                inputs_embeds=embeddings, attention_mask=mask, position_ids=position_ids(mask), past_key_values=cache
            ).logits[:, -1:]
            for token in (5, 6, 7):
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                step = torch.full((len(mask), 1), token)
                more = model(
                    step, attention_mask=mask, position_ids=position_ids(mask)[:, -1:], past_key_values=cache
                ).logits
                found = torch.cat([found, more], dim=1)
        return found, cache

    together, cache = read(embeddings, mask)
    real = mask[1].bool()
    alone, own = read(embeddings[1:, real], mask[1:, real])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)
    for layer in range(4):
        assert torch.equal(cache.kept_positions(layer)[1], own.kept_positions(layer)[0])


def test_padding_behind_them_goes_with_no_window():
    """Windows are counted in columns, padding among them."""
    model = tuned("mistral-window")
    cache = SqueezeCache(model, 400, "h2o")
    with pytest.raises(InputError, match="padding between a prompt's tokens"):
        model.generate(**batch(), past_key_values=cache, **ANSWER)
    model.generate(IDS, past_key_values=SqueezeCache(model, 400, "h2o"), **ANSWER)


def test_padding_that_no_token_follows_is_refused_as_ever():
    model = tiny_model("llama")
    mask = torch.ones_like(IDS)
    mask[0, 5:9] = mask[0, -2:] = 0
    with pytest.raises(InputError, match="right padding"):
        model(IDS, attention_mask=mask, past_key_values=SqueezeCache(model, 400))


def test_a_prefix_that_takes_the_caches_place_is_an_error():
    model = tuned(prefix=True)
    with pytest.raises(CacheStateError, match="another library may have put one of its own in place"):
        model.generate(IDS, past_key_values=SqueezeCache(model, 400), **ANSWER)
