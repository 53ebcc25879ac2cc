"""A cache that ``generate`` was given is read, whatever this release of transformers calls it; if not, that is said."""

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from squeezeattention import SqueezeCache, squeeze
from squeezeattention.errors import CacheStateError
from squeezeattention.hf import compat
from squeezeattention.testing import tiny_model

IDS = torch.arange(3, 60)[None]
SETTINGS = {"budget": 12, "policy": "streaming_llm", "allocator": "uniform"}
SHORT = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False,
         "pad_token_id": 0}  # fmt: skip


def renamed(kwargs, name="unheard_of"):
    """Arguments as a release would see them that calls the cache something else."""
    return {(name if key in ("cache", "past_key_values") else key): value for key, value in kwargs.items()}


class ForgetsTheName(LlamaForCausalLM):
    """As if ``generate`` called the cache otherwise: what it is given under the old name goes unread."""

    def generate(self, *args, **kwargs):
        return super().generate(*args, **{k: v for k, v in renamed(kwargs).items() if k != "unheard_of"})


class MakesItsOwn(ForgetsTheName):
    """... and nothing of ours is asked for a cache."""

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, mode, rows, max_cache_length):
        model_kwargs[compat.generate_cache_name()] = DynamicCache(config=self.config)


class ThrowsAway(LlamaForCausalLM):
    """Gives up its cache from some token on, and reads the text anew (Phi-3 does, where rotary scaling switches)."""

    beyond = 0

    def prepare_inputs_for_generation(self, input_ids, *args, **kwargs):
        if input_ids.shape[1] > self.beyond:
            kwargs[compat.generate_cache_name()] = None
            kwargs["next_sequence_length"] = None
            kwargs.pop("position_ids", None)
            kwargs["use_cache"] = False
            return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        held = model_kwargs.get(compat.generate_cache_name())
        found = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        found[compat.generate_cache_name()] = held
        return found


def of_class(kind, **attributes):
    model = tiny_model("llama")
    model.__class__ = kind
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_generate_takes_the_cache_under_either_name(name):
    model = tiny_model("llama")
    with squeeze(model, **SETTINGS) as squeezed:
        want = model.generate(IDS, **SHORT)
        assert squeezed.cache.lengths() == [12] * 4
    cache = SqueezeCache(model, **SETTINGS)
    assert model.generate(IDS, **{name: cache}, **SHORT).tolist() == want.tolist()
    assert cache.lengths() == [12] * 4
    assert cache.get_seq_length() == IDS.shape[1] + 5


def test_a_cache_that_goes_unread_is_an_error():
    model = of_class(ForgetsTheName)
    cache = SqueezeCache(model, **SETTINGS)
    with pytest.raises(CacheStateError, match="never read it"):
        model.generate(IDS, past_key_values=cache, **SHORT)


def test_a_handle_whose_cache_goes_unread_is_an_error():
    model = of_class(MakesItsOwn)
    with squeeze(model, **SETTINGS):
        # ours stands in front of the class's own, which never asks it: as a release would that names it otherwise
        del model.__dict__["_prepare_cache_for_generation"]
        with pytest.raises(CacheStateError, match="never asked for a cache"):
            model.generate(IDS, **SHORT)
    model.generate(IDS, **SHORT)


@pytest.mark.parametrize(("beyond", "what"), [(0, "never read it"), (60, "stopped reading it after 60 of 63 tokens")])
@pytest.mark.parametrize("handle", [True, False])
def test_a_cache_that_the_model_throws_away_is_an_error(beyond, what, handle):
    model = of_class(ThrowsAway, beyond=beyond)
    if handle:
        with squeeze(model, **SETTINGS), pytest.raises(CacheStateError, match=what):
            model.generate(IDS, **SHORT)
    else:
        cache = SqueezeCache(model, **SETTINGS)
        with pytest.raises(CacheStateError, match=what):
            model.generate(IDS, past_key_values=cache, **SHORT)


def test_a_cache_made_in_the_call_itself_is_missed_at_the_prompts_end():
    model = of_class(ThrowsAway)
    with pytest.raises(CacheStateError, match="never read it"):
        model.generate(IDS, past_key_values=SqueezeCache(model, **SETTINGS), **SHORT)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}, {"eos": True}])
def test_what_was_read_is_no_error(options):
    """Rows that end early, beams and several answers: the text may be longer than what was fed, by one token."""
    model = tiny_model("llama")
    given = {**SHORT, **{k: v for k, v in options.items() if k != "eos"}}
    if "eos" in options:
        given["eos_token_id"] = int(model.generate(IDS, **SHORT)[0, -3])
        del given["min_new_tokens"]
    for returns in (False, True):
        cache = SqueezeCache(model, **SETTINGS)
        model.generate(IDS, past_key_values=cache, return_dict_in_generate=returns, **given)
        assert cache.lengths() == [12] * 4


def test_embeddings_are_read_too():
    model = tiny_model("llama")
    cache = SqueezeCache(model, **SETTINGS)
    model.generate(inputs_embeds=model.get_input_embeddings()(IDS).detach(), past_key_values=cache, **SHORT)
    assert cache.lengths() == [12] * 4
    assert cache.memory().peak_bytes < cache.memory().full_bytes


@pytest.mark.parametrize("ids", [1, 24, 40], ids="{} ids".format)
def test_ids_beside_embeddings_are_none_that_were_read(ids):
    """They are in front of what ``generate`` returns, for penalties and the like; their number says nothing."""
    model = tiny_model("llama")
    cache = SqueezeCache(model, **SETTINGS)
    given = model.get_input_embeddings()(IDS[:, :24]).detach()
    model.generate(torch.full((len(IDS), ids), 5), inputs_embeds=given, past_key_values=cache, **SHORT)
    assert cache.lengths() == [12] * 4
