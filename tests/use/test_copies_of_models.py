"""Copies of a model, however made while a cache lives, are those of an untouched model."""

import copy
import io
import pickle
import sys

import pytest
import torch

from squeezeattention import SqueezeCache, squeeze
from squeezeattention.testing import tiny_model

IDS = torch.arange(3, 60)[None]
SETTINGS = {"budget": 12, "policy": "h2o", "allocator": "uniform"}


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return buffer.getvalue()


def loaded(data, monkeypatch):
    """Read as by somebody who does not have this library."""
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "squeezeattention"]:
            patch.setitem(sys.modules, name, None)
        return torch.load(io.BytesIO(data), weights_only=False)


def entries(model):
    """What each module has of its own, tables of hooks included, and its attention implementation."""
    found = {}
    for name, module in model.named_modules():
        tables = {key: len(table) for key, table in vars(module).items() if "hooks" in key and table is not None}
        config = getattr(module, "config", None)
        found[name] = sorted(vars(module)), tables, getattr(config, "_attn_implementation", None)
    return found


def generate(model, **options):
    return model.generate(
        IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0,
        **options,
    ).tolist()  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"prefill": "bounded"}], ids=str)
@pytest.mark.parametrize("family", ["llama", "falcon-new"])
@pytest.mark.parametrize("how", ["torch.save", "pickle", "deepcopy"])
def test_a_copy_knows_nothing_of_the_cache(family, settings, how, monkeypatch):
    model, pristine = tiny_model(family), tiny_model(family)
    want = generate(pristine)
    cache = SqueezeCache(model, **SETTINGS, **settings)
    with squeeze(model, **SETTINGS) as squeezed:
        generate(model)
        data = {"torch.save": saved, "pickle": pickle.dumps, "deepcopy": copy.deepcopy}[how](model)
        assert squeezed.cache.lengths() == [12] * 4
    generate(model, past_key_values=cache)
    copied = data
    if how == "torch.save":
        copied = loaded(data, monkeypatch)
    elif how == "pickle":
        assert b"squeeze" not in data
        copied = pickle.loads(data)
    assert entries(copied) == entries(pristine)
    assert generate(copied) == want
    assert cache.lengths() == [12] * 4
    twin = SqueezeCache(copied, **SETTINGS)  # and may have one of its own
    generate(copied, past_key_values=twin)
    assert twin.lengths() == [12] * 4
    twin.detach()
    assert entries(copied) == entries(pristine)
    cache.detach()
    assert entries(model) == entries(pristine)


def test_a_shallow_copy_of_the_model_is_its_own():
    model = tiny_model("llama")
    cache = SqueezeCache(model, **SETTINGS)
    assert not {"generate", "__reduce_ex__"} & set(vars(copy.copy(model)))
    cache.detach()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_configs_are_copied_with_the_models_own_implementation(implementation, tmp_path):
    model = tiny_model("llama", attn_implementation=implementation)
    text = model.config.to_json_string()
    cache = SqueezeCache(model, **SETTINGS)
    for config in (copy.deepcopy(model.config), pickle.loads(pickle.dumps(model.config))):
        assert type(config._attn_implementation) is str
        assert config._attn_implementation == implementation
    assert model.config.to_json_string() == text
    model.save_pretrained(tmp_path / "attached")
    cache.detach()
    model.save_pretrained(tmp_path / "alone")
    attached, alone = (
        type(model).from_pretrained(tmp_path / name, attn_implementation=implementation)
        for name in ("attached", "alone")
    )
    assert entries(attached) == entries(alone)


def test_a_forward_that_another_library_had_put_there_is_copied():
    """accelerate does that: the copy has theirs, not ours, and not the entry where we keep theirs."""
    model = tiny_model("llama")
    model.model.forward = model.model.forward
    pristine = entries(model)
    cache = SqueezeCache(model, prefill="bounded", **SETTINGS)
    copied = copy.deepcopy(model)
    assert entries(copied) == pristine
    assert copied.model.__dict__["forward"].__func__ is type(model.model).forward
    cache.detach()
    assert entries(model) == pristine
