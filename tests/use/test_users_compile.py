"""What the user has compiled of a model is not traced while a cache of ours lives, and is there again after that."""

import copy

import pytest
import torch

from squeezeattention import SqueezeCache, squeeze
from squeezeattention.errors import CacheStateError, UnsupportedFeatureError
from squeezeattention.testing import tiny_model

IDS = torch.arange(3, 43)[None]
ANSWER = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
SETTINGS = {"budget": 12, "policy": "h2o", "allocator": "squeeze"}


@pytest.fixture
def traced():
    """How to compile, and what was compiled so far."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    yield {"backend": backend, "dynamic": True}, graphs
    torch._dynamo.reset()


def compile_forward(model, how):
    model.forward = torch.compile(model.forward, fullgraph=True, **how)


def compile_module(model, how):
    model.compile(fullgraph=True, **how)


def compile_layers(model, how):
    for layer in model.model.layers:
        layer.compile(fullgraph=True, **how)


@pytest.mark.parametrize("compiling", [compile_forward, compile_module, compile_layers])
def test_a_users_own_compile(compiling, traced):
    how, graphs = traced
    model = tiny_model("llama", num_hidden_layers=2)
    with squeeze(model, **SETTINGS):
        squeezed = model.generate(IDS, **ANSWER)
    stock = model.generate(IDS, **ANSWER)
    compiling(model, how)
    before = {module: dict(vars(module)) for module in model.modules()}
    assert torch.equal(model.generate(IDS, **ANSWER), stock)
    known = len(graphs)
    assert known
    for _ in range(2):
        with squeeze(model, **SETTINGS):
            assert torch.equal(model.generate(IDS, **ANSWER), squeezed)
        cache = SqueezeCache(model, **SETTINGS)
        with torch.no_grad():
            model(IDS, past_key_values=cache)
            model(IDS[:, :1], past_key_values=cache)
        cache.detach()
        assert len(graphs) == known
        assert torch.equal(model.generate(IDS, **ANSWER), stock)
        assert len(graphs) == known
    for module, own in before.items():
        for place in ("forward", "_compiled_call_impl"):
            assert vars(module).get(place) is own.get(place)


def test_a_copy_of_a_compiled_model_is_that_of_an_untouched_one(traced):
    model = tiny_model("llama", num_hidden_layers=2)
    compile_module(model, traced[0])
    untouched = set(vars(copy.deepcopy(model)))
    cache = SqueezeCache(model, **SETTINGS)
    assert set(vars(copy.deepcopy(model))) == untouched
    cache.detach()


def test_other_caches_are_right_while_ours_lives(traced):
    how, graphs = traced
    model = tiny_model("llama", num_hidden_layers=2)
    stock = model.generate(IDS, **ANSWER)
    compile_layers(model, how)
    cache = SqueezeCache(model, **SETTINGS)
    assert torch.equal(model.generate(IDS, **ANSWER), stock)
    compile_forward(model, how)  # ... and what is compiled meanwhile is not, from the next cache on
    later = SqueezeCache(model, **SETTINGS)
    assert torch.equal(model.generate(IDS, **ANSWER), stock)
    assert not graphs
    cache.detach()
    later.detach()
    assert torch.equal(model.generate(IDS, **ANSWER), stock)
    assert graphs


def test_a_model_from_torch_compile_needs_a_cache_made_of_it(traced):
    how, _ = traced
    model = tiny_model("llama", num_hidden_layers=2)
    compiled = torch.compile(model, **how)
    with torch.no_grad():
        want = model(IDS).logits
        of_compiled = SqueezeCache(compiled, 100, "h2o")
        got = compiled(IDS, past_key_values=of_compiled).logits
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
        of_compiled.detach()
        with pytest.raises(CacheStateError, match=r"torch\.compile"):
            compiled(IDS, past_key_values=SqueezeCache(model, 100, "h2o"))


class Around(torch.nn.Module):
    def __init__(self, model, cache):
        super().__init__()
        self.model, self.cache = model, cache

    def forward(self, ids):
        return self.model(ids, past_key_values=self.cache, use_cache=self.cache is not None).logits


@pytest.mark.parametrize("how", ["trace", "export"])
def test_a_forward_that_is_recorded(how):
    """With a cache it is refused, and nothing has changed; without it is as always."""
    model = tiny_model("llama", num_hidden_layers=2)
    cache = SqueezeCache(model, 100, "h2o")

    def record(module, ids):
        if how == "trace":
            return torch.jit.trace(module, ids, check_trace=False)
        return torch.export.export(module, (ids,), strict=False).module()

    with torch.no_grad():
        want = model(IDS).logits
        torch.testing.assert_close(record(Around(model, None), IDS)(IDS), want)
        model(IDS[:, :-1], past_key_values=cache)
        with pytest.raises(UnsupportedFeatureError, match=r"torch\.jit\.trace and torch\.export"):
            record(Around(model, cache), IDS[:, -1:])
        got = model(IDS[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(got, want[:, -1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", ["vmap", "grad", "jvp"])
def test_transforms_of_torch_func(how):
    """Refused through a cache, which goes on as before; without one they do what they always did."""
    model = tiny_model("llama", num_hidden_layers=2, attn_implementation="eager")
    cache = SqueezeCache(model, 100, "h2o")
    embedded = model.get_input_embeddings()(IDS).detach()

    def transformed(cache, given):
        def run(embeddings):
            return model(inputs_embeds=embeddings, past_key_values=cache, use_cache=cache is not None).logits

        if how == "vmap":
            return torch.func.vmap(run)(given[None])[0]
        if how == "grad":
            return torch.func.grad(lambda given: run(given).sum())(given)
        return torch.func.jvp(run, (given,), (torch.ones_like(given),))[0]

    assert transformed(None, embedded).shape[:2] == IDS.shape
    with torch.no_grad():
        want = model(IDS).logits
        model(IDS[:, :-1], past_key_values=cache)
    with pytest.raises(UnsupportedFeatureError, match=r"torch\.func's transforms"):
        transformed(cache, embedded[:, -1:])
    with torch.no_grad():
        got = model(IDS[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(got, want[:, -1:], atol=1e-5, rtol=0)
