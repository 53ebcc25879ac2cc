"""Autocast, ``inference_mode`` and gradients that begin or end in the middle of a text: as with the stock cache."""

import contextlib
import itertools

import pytest
import torch
from transformers import DynamicCache

from squeezeattention import SqueezeCache
from squeezeattention.errors import UnsupportedFeatureError
from squeezeattention.testing import tiny_model

IDS = torch.randint(3, 101, (1, 60), generator=torch.Generator().manual_seed(1))
TOLERANCE = 1e-4
#: (policy, allocator, budget): rectangles, rings and ragged heads, with and without eviction.
CACHES = [
    ("h2o", "uniform", 400), ("streaming_llm", "uniform", 400), ("echo", None, 400),
    ("h2o", None, 30), ("streaming_llm", "uniform", 30), ("streaming_llm", None, 30), ("echo", None, 30),
    ("snapkv", "adakv", 30),
]  # fmt: skip
FAMILIES = ["llama", "qwen3-window", "gpt2", "deepseek-v3"]


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def read(model, cache, *modes, step=lambda: None):
    """Logits of prompt, decode steps, a further turn and steps again; ``modes`` take turns, a forward each where there
    are more than two, else the first one reads the prompt and its first token."""
    found = []
    stops = (40, *range(41, 50), 58, 59, 60)
    for number, (start, stop) in enumerate(itertools.pairwise((0, *stops))):
        mode = modes[number % len(modes)] if len(modes) > 2 else modes[number > 1]
        step()
        with mode():
            found.append(model(IDS[:, start:stop], past_key_values=cache, use_cache=True).logits.detach().float())
    return torch.cat(found, dim=1)


def with_autocast(mode=contextlib.nullcontext):
    @contextlib.contextmanager
    def entered():
        with torch.no_grad(), mode():
            yield

    return entered


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("policy", "allocator", "budget"), CACHES)
@pytest.mark.parametrize("first", [True, False])
def test_autocast_on_one_side_of_the_prompts_end(family, policy, allocator, budget, first):
    model = tiny_model(family)
    modes = [with_autocast(autocast), with_autocast()][:: 1 if first else -1]
    cache = SqueezeCache(model, budget, policy, allocator)
    got = read(model, cache, *modes)
    assert got.isfinite().all()
    assert cache.layers[0].store.keys.dtype == cache.layers[0].store.values.dtype == torch.float32  # the wider
    want = DynamicCache(config=model.config)
    if budget == 30:
        if allocator != "uniform" or family == "deepseek-v3":  # bf16 plans otherwise, or chooses other experts
            return
        want, modes = SqueezeCache(model, budget, policy, allocator), (torch.no_grad, torch.no_grad)
    assert (got - read(model, want, *modes)).abs().max() < 0.1  # bf16


@pytest.mark.parametrize("family", FAMILIES[::3])
@pytest.mark.parametrize(("policy", "allocator", "budget"), CACHES)
@pytest.mark.parametrize(
    "modes",
    [
        (torch.inference_mode, torch.no_grad),
        (torch.no_grad, torch.inference_mode),
        (torch.inference_mode, torch.enable_grad),
        (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode),
    ],
    ids=["first", "then", "grad", "turns"],
)
def test_inference_mode_on_one_side(family, policy, allocator, budget, modes):
    model = tiny_model(family)
    want = read(model, SqueezeCache(model, budget, policy, allocator), torch.no_grad, torch.no_grad)
    if budget == 400:
        stock = read(model, DynamicCache(config=model.config), torch.no_grad, torch.no_grad)
        torch.testing.assert_close(want, stock, atol=TOLERANCE, rtol=0)
    cache = SqueezeCache(model, budget, policy, allocator)
    torch.testing.assert_close(read(model, cache, *modes), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("policy", "allocator", "budget"), CACHES)
@pytest.mark.parametrize("inside", [True, False])
def test_a_prompt_that_is_cut_outside_of_autocast(policy, allocator, budget, inside):
    model = tiny_model("llama")
    modes = (with_autocast(autocast), with_autocast())[:: 1 if inside else -1]
    cache = SqueezeCache(model, budget, policy, allocator)
    with modes[0]():
        model(IDS[:, :40], past_key_values=cache, use_cache=True)
    with modes[1]():
        assert cache.plan.total == 4 * min(budget, cache.plan.base_budget)
    with modes[1]():
        out = model(IDS[:, 40:41], past_key_values=cache, use_cache=True).logits
    if budget == 400:
        with torch.no_grad():
            want = model(IDS[:, :41]).logits[:, -1:]
        assert (out.float() - want).abs().max() < 0.1


@pytest.mark.parametrize(("policy", "allocator", "budget"), CACHES)
@pytest.mark.parametrize("inside", [True, False])
def test_what_is_asked_on_the_other_side(policy, allocator, budget, inside):
    """The cut, and a choice of rows, in another mode than what was read."""
    model = tiny_model("llama")
    modes = (torch.no_grad, torch.inference_mode)[:: 1 if inside else -1]

    def asked(modes):
        cache = SqueezeCache(model, budget, policy, allocator)
        with modes[0]():
            model(IDS[:, :40], past_key_values=cache, use_cache=True)
        with modes[1]():
            cache.memory()
            cache.batch_repeat_interleave(2)
        with modes[0]():
            ids = IDS.expand(2, -1)
            return torch.cat([
                model(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(40, 50)
            ])  # fmt: skip

    torch.testing.assert_close(asked(modes), asked((torch.no_grad, torch.no_grad)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("modes", [(with_autocast(autocast), with_autocast()), (torch.inference_mode, torch.no_grad)])
@pytest.mark.parametrize("policy", ["h2o", "streaming_llm", "echo"])
@pytest.mark.parametrize("turned", [True, False])
def test_compiled_steps(modes, policy, turned, graphs):
    model = tiny_model("llama", num_hidden_layers=2)
    modes = modes[:: -1 if turned else 1]
    want = read(model, SqueezeCache(model, 30, policy), *modes)
    got = read(model, SqueezeCache(model, 30, policy, compile=True), *modes)
    torch.testing.assert_close(got, want, atol=0.05 if modes[0] is not torch.no_grad else 1e-4, rtol=0)
    assert graphs


@pytest.mark.parametrize("family", ["llama", "falcon-new", "deepseek-v3"])
@pytest.mark.parametrize(("policy", "allocator", "budget"), CACHES[::3])
def test_a_backward_pass_is_refused(family, policy, allocator, budget):
    """Forwards with gradients on work as ever: parameters want gradients by default, and nobody asks for them."""
    model = tiny_model(family)
    embed = model.get_input_embeddings()
    stock, cache = DynamicCache(config=model.config), SqueezeCache(model, budget, policy, allocator)
    read(model, cache, torch.no_grad, torch.no_grad)
    read(model, stock, torch.no_grad, torch.no_grad)
    for each in (cache, stock):
        given = embed(torch.tensor([[5, 6]])).detach().requires_grad_()
        loss = model(inputs_embeds=given, past_key_values=each, use_cache=True).logits.square().sum()
        if each is stock:
            loss.backward()
            assert given.grad.abs().max() > 0
        else:
            with pytest.raises(UnsupportedFeatureError, match="backward pass through a SqueezeCache"):
                loss.backward()
    with torch.no_grad():  # and the cache goes on
        model(IDS[:, :1], past_key_values=cache, use_cache=True)


def test_a_backward_pass_that_needs_nothing_of_the_cache_is_right():
    """Only the head is trained: no gradient goes where keys were."""
    model = tiny_model("llama")
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_()
    found = []
    for cache in (DynamicCache(config=model.config), SqueezeCache(model, 400, "h2o")):
        model.lm_head.weight.grad = None
        model(IDS, past_key_values=cache, use_cache=True).logits.square().sum().backward()
        found.append(model.lm_head.weight.grad)
    torch.testing.assert_close(found[1], found[0], atol=1e-3, rtol=0)


def test_a_backward_pass_through_compiled_steps_is_refused(graphs):
    model = tiny_model("llama", num_hidden_layers=2)
    cache = SqueezeCache(model, 30, "h2o", compile=True)
    read(model, cache, torch.no_grad, torch.no_grad)
    loss = model(IDS[:, :1], past_key_values=cache, use_cache=True).logits.sum()
    with pytest.raises(UnsupportedFeatureError, match="backward pass"):
        loss.backward()
