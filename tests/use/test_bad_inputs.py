"""Mistakes: each raises a SqueezeError that says what was given and what would do; the model is as before."""

import contextlib
import copy
import gc
import json
import math
import pickle
import re

import pytest
import torch
from torch import nn

from squeezeattention import POLICIES, BudgetPlan, SqueezeCache, SqueezeError, squeeze
from squeezeattention.allocators import ALLOCATORS
from squeezeattention.errors import (
    BudgetError,
    CacheStateError,
    ConfigError,
    InputError,
    PlanError,
    UnknownNameError,
    UnsupportedFeatureError,
    UnsupportedModelError,
)
from squeezeattention.hf import compat
from squeezeattention.signals import SIGNALS
from squeezeattention.testing import tiny_model

IDS = torch.randint(3, 101, (2, 24), generator=torch.Generator().manual_seed(3))
ONE = IDS[:1]
SHORT = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def tokens(model):
    """What the model says, with its own cache and with a fresh one of ours."""
    own = model.generate(IDS, attention_mask=torch.ones_like(IDS), **SHORT)
    cache = SqueezeCache(model, budget=11, policy="h2o", allocator="uniform")
    ours = model.generate(IDS, attention_mask=torch.ones_like(IDS), past_key_values=cache, **SHORT)
    return own.tolist(), ours.tolist()


MODELS, SAID = {}, {}


def model_of(family):
    if family not in MODELS:
        MODELS[family] = tiny_model(family)
        SAID[family] = tokens(MODELS[family])
    return MODELS[family]


@pytest.fixture
def model():
    return model_of("llama")


@contextlib.contextmanager
def refused(error, *words, family="llama"):
    """The block raises ``error`` with ``words`` in its text, and the model goes on as before."""
    with pytest.raises(SqueezeError) as caught:
        yield
    assert isinstance(caught.value, error), repr(caught.value)
    for word in words:
        assert re.search(word, str(caught.value), re.IGNORECASE), f"{word!r} is not in: {caught.value}"
    assert tokens(MODELS[family]) == SAID[family]


# ------------------------------------------------------------------ arguments

BUDGETS = [
    0, -1, 1.5, "abc", math.nan, math.inf, -math.inf, True, "0MiB", "-3MiB", "", 0.0, -0.2,
    "12 parsecs", "nan", "1e3", b"1MiB", [16], {"tokens": 16}, 1j, "0%", "101%",
]  # fmt: skip


@pytest.mark.parametrize("budget", BUDGETS, ids=repr)
def test_budget(model, budget):
    for use in (SqueezeCache, squeeze):
        with refused(BudgetError, re.escape(repr(budget)), "budget", "tokens per layer", "share", "MiB"):
            use(model, budget=budget)


BELOW = [
    ("streaming_llm", 4, {}, "5"),
    ("streaming_llm", 20, {"sinks": 20}, "21"),
    ("h2o", 1, {}, "2"),
]


@pytest.mark.parametrize(("policy", "budget", "options", "least"), BELOW)
def test_budget_below_the_minimum(model, policy, budget, options, least):
    with refused(BudgetError, f"{budget}", policy, f"at least {least}"):
        SqueezeCache(model, budget=budget, policy=policy, **options)


@pytest.mark.parametrize("allocator", ["uniform", "squeeze"])
def test_bytes_for_less_than_a_token_are_found_when_the_prompt_is_planned(model, allocator):
    cache = SqueezeCache(model, budget="16B", policy="sliding_window", allocator=allocator)
    with refused(BudgetError, "16 ?b", "too small", "at least 512 bytes"):
        model.generate(ONE, past_key_values=cache, **SHORT)
    with refused(CacheStateError, "unusable", "planned", r"reset\(\)"):
        model.generate(ONE, past_key_values=cache, **SHORT)
    with refused(CacheStateError, "unusable"):
        model(ONE, past_key_values=cache)
    cache.reset()
    assert cache.plan is None
    assert cache.lengths() == [0] * 4
    with refused(BudgetError, "too small"):  # the prompt is read again, so the cache is alive
        model.generate(ONE, past_key_values=cache, **SHORT)


def test_fixed_budgets_below_the_minimum(model):
    with refused(BudgetError, "layer 0", "1 token", "at least 5"):
        cache = SqueezeCache(model, policy="streaming_llm", allocator=[1, 9, 9, 9])
        model.generate(ONE, past_key_values=cache, **SHORT)


@pytest.mark.parametrize("allocator", ["squeeze", "uniform"])
@pytest.mark.parametrize("p", [0, -0.1, 1.1, math.nan, "x", True, math.inf, [0.3]], ids=repr)
def test_p(model, p, allocator):
    with refused(ConfigError, r"\bp\b", re.escape(repr(p)), "above 0 and at most 1"):
        SqueezeCache(model, p=p, allocator=allocator)


NAMES = [
    ("policy", "h20", "h2o", POLICIES),
    ("policy", "StreamingLLM", None, POLICIES),
    ("policy", "", None, POLICIES),
    ("allocator", "sqeeze", "squeeze", ALLOCATORS),
    ("allocator", "unifrom", "uniform", ALLOCATORS),
    ("allocator", "8,8,8,8", None, ALLOCATORS),
    ("signal", "cosin", "cosine", SIGNALS),
    ("signal", "xyz", None, SIGNALS),
]


@pytest.mark.parametrize(("kind", "name", "close", "registry"), NAMES)
def test_unknown_names(model, kind, name, close, registry):
    words = [f"unknown {kind}", re.escape(repr(name)), "choose one of", *registry.names()]
    with refused(UnknownNameError, *words, *([f"did you mean '{close}'"] if close else [])):
        SqueezeCache(model, **{kind: name})


OPTIONS = [
    ({"outliers": "x"}, ("outliers", "keep", "clamp", "'x'")),
    ({"outliers": 1}, ("outliers", "keep", "clamp", "1")),
    ({"positions": "x", "policy": "streaming_llm"}, ("positions", "original", "cache", "'x'")),
    ({"positions": "x"}, ("positions", "streaming_llm", "echo")),
    ({"positions": "cache", "policy": "h2o"}, ("positions", "streaming_llm", "h2o")),
    ({"positions": "cache", "policy": "sliding_window"}, ("positions", "streaming_llm", "sliding_window")),
    ({"sinks": -1, "policy": "streaming_llm"}, ("sinks", "-1", ">= 0")),
    ({"sinks": 2.5, "policy": "streaming_llm"}, ("sinks", "2.5", "integer")),
    ({"sinks": True, "policy": "streaming_llm"}, ("sinks", "True", "integer")),
    ({"sinks": 4, "policy": "h2o"}, ("sinks", "streaming_llm", "h2o")),
    ({"new_tokens": -1}, ("new_tokens", "-1", ">= 0")),
    ({"new_tokens": 1.5}, ("new_tokens", "1.5", "integer")),
    ({"new_tokens": True}, ("new_tokens", "True", "integer")),
    ({"policy": None}, ("policy", "None", "name")),
    ({"policy": POLICIES}, ("policy", "name")),
    ({"signal": 3.5}, ("signal", "3.5", "name")),
    ({"allocator": []}, ("fixed budgets", "one number per layer", "none")),
    ({"allocator": [8, 0, 8, 8]}, ("fixed budgets", "layer 1", "0", ">= 1")),
    ({"allocator": [8, -3, 8, 8]}, ("fixed budgets", "layer 1", "-3", ">= 1")),
    ({"allocator": [8, 8.0, 8, 8]}, ("fixed budgets", "layer 1", "8.0", "whole numbers")),
    ({"allocator": [8, 8, True, 8]}, ("fixed budgets", "layer 2", "True", "whole numbers")),
    ({"allocator": ["8", 8, 8, 8]}, ("fixed budgets", "layer 0", "'8'", "whole numbers")),
    ({"allocator": 7}, ("allocator", "7", "squeeze", "uniform", "list")),
    ({"allocator": {0: 8}}, ("allocator", "squeeze", "uniform", "list")),
    ({"allocator": torch.tensor([8, 8, 8, 8])}, ("allocator", "list of tokens per layer")),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=lambda value: str(value)[:40])
def test_options(model, options, words):
    for use in (SqueezeCache, squeeze):
        with refused(ConfigError, *words):
            use(model, **options)


@pytest.mark.parametrize("family", ["opt", "gpt2", "mistral-window", "gemma3", "deepseek-v3"])
def test_positions_that_cannot_move(family):
    model = model_of(family)
    with refused(UnsupportedModelError, 'positions="cache"', family=family):
        SqueezeCache(model, budget=16, policy="streaming_llm", positions="cache")


# ---------------------------------------------------------------------- plans


@pytest.mark.parametrize("budgets", [[8, 8, 8], [8] * 5, [8]])
def test_fixed_budgets_of_another_length(model, budgets):
    with refused(PlanError, f"{len(budgets)} layers", "the model has 4"):
        SqueezeCache(model, allocator=budgets)


def plan_of(model):
    cache = SqueezeCache(model, budget=11)
    model.generate(ONE, past_key_values=cache, **SHORT)
    return cache.plan


def test_plan_with_other_layers(model):
    plan = plan_of(tiny_model("llama", num_hidden_layers=2))
    with refused(PlanError, "2 layers", "the model has 4", "make a plan"):
        SqueezeCache(model, allocator=plan)


@pytest.mark.parametrize("through_a_file", [False, True])
def test_plan_of_another_model(model, through_a_file, tmp_path):
    plan = plan_of(tiny_model("mistral"))
    if through_a_file:
        plan.save(tmp_path / "plan.json")
        plan = BudgetPlan.load(tmp_path / "plan.json")
    for use in (SqueezeCache, squeeze):
        with refused(PlanError, "mistral-4x2x8", "llama-4x2x8", "make a plan"):
            use(model, allocator=plan)


def broken(change):
    def write(path, good):
        data = json.loads(good)
        change(data)
        path.write_text(json.dumps(data))

    return write


FILES = {
    "missing": (lambda path, good: None, ["cannot read"]),
    "a folder": (lambda path, good: path.mkdir(), ["cannot read"]),
    "empty": (lambda path, good: path.write_text(""), ["not JSON"]),
    "half": (lambda path, good: path.write_text(good[: len(good) // 2]), ["not JSON"]),
    "binary": (lambda path, good: path.write_bytes(b"\xff\xfe\x00"), ["UTF-8"]),
    "a list": (lambda path, good: path.write_text("[1, 2]"), ["format"]),
    "nan": (lambda path, good: path.write_text(re.sub(r'"floor": \d+', '"floor": NaN', good)), ["NaN|floor"]),
    "nested": (lambda path, good: path.write_text("[" * 100000), ["JSON"]),
    "version": (broken(lambda data: data.update(version=99)), ["version 99", "reads 1"]),
    "lacking": (broken(lambda data: data.pop("budgets")), ["lacks", "budgets"]),
    "unknown": (broken(lambda data: data.update(colour=1)), ["unknown", "colour"]),
    "bools": (broken(lambda data: data.update(budgets=[True] * 4)), ["budgets", "whole number"]),
    "text": (broken(lambda data: data.update(budgets="9999")), ["budgets", "list"]),
    "sum": (broken(lambda data: data["budgets"].__setitem__(0, data["budgets"][0] - 1)), ["total|sum|spend"]),
    "zero": (broken(lambda data: data["budgets"].__setitem__(0, 0)), ["budget of layer 0"]),
    "huge": (broken(lambda data: data.update(signal_values=[10**400] * 4)), ["signal_values", "too large|finite"]),
}


@pytest.mark.parametrize("kind", FILES)
def test_corrupt_plan_files(model, kind, tmp_path):
    write, words = FILES[kind]
    good = tmp_path / "good.json"
    plan_of(model).save(good)
    path = tmp_path / "bad.json"
    write(path, good.read_text())
    with refused(PlanError, "bad.json", *words):
        SqueezeCache(model, allocator=BudgetPlan.load(path))


# -------------------------------------------------------------------- prompts


def test_empty_prompt(model):
    cache = SqueezeCache(model, budget=11)
    with refused(InputError, "empty", "at least one token"):
        model(input_ids=ONE[:, :0], past_key_values=cache)
    with refused(InputError, "empty", "at least one token"):
        model(inputs_embeds=torch.zeros(1, 0, 32), past_key_values=cache)
    with refused(InputError, "empty", "at least one token"):
        model(input_ids=IDS[:0], past_key_values=cache)
    assert model.generate(ONE, past_key_values=cache, **SHORT).shape == (1, 30)  # the cache is still good


def test_empty_prompt_of_generate(model):
    with refused(InputError, "empty"):
        model.generate(ONE[:, :0], past_key_values=SqueezeCache(model, budget=11), **SHORT)


def padded(*pads):
    """A mask of two rows; positive = left pads, negative = right pads."""
    mask = torch.ones_like(IDS)
    for row, count in enumerate(pads):
        if count > 0:
            mask[row, :count] = 0
        elif count:
            mask[row, count:] = 0
    return mask


MASKS = {
    "all pad": (padded(0, 24), ["row 1", "all padding", "at least one real token"]),
    "right": (padded(0, -3), ["right padding", "pad on the left", "padding_side"]),
    "wide": (torch.ones(2, 30, dtype=torch.long), ["attention_mask", r"\(2, 30\)", "24"]),
    "narrow": (torch.ones(2, 20, dtype=torch.long), ["attention_mask", r"\(2, 20\)", "24"]),
    "rows": (torch.ones(3, 24, dtype=torch.long), ["attention_mask", r"\(3, 24\)", "2 rows"]),
    "flat": (torch.ones(24, dtype=torch.long), ["attention_mask", "2-D", r"\(24,\)"]),
    "4-D": (torch.ones(2, 1, 24, 24), ["attention_mask", "2-D", r"\(2, 1, 24, 24\)"]),
    "list": ([[1] * 24] * 2, ["attention_mask", "tensor", "list"]),
}


@pytest.mark.parametrize(
    ("given", "words"), [(ONE[0], ["batch", r"\(24,\)", r"input_ids\[None\]"]), (IDS.tolist(), ["tensors", "list"])]
)
def test_ids_that_are_no_batch(model, given, words):
    cache = SqueezeCache(model, budget=11)
    with refused(InputError, *words):
        model(input_ids=given, past_key_values=cache)
    assert model.generate(ONE, past_key_values=cache, **SHORT).shape == (1, 30)  # the cache is still good


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_a_forward(model, kind):
    mask, words = MASKS[kind]
    cache = SqueezeCache(model, budget=11)
    with refused(InputError, *words):
        model(input_ids=IDS, attention_mask=mask, past_key_values=cache)
    got = model.generate(IDS, attention_mask=torch.ones_like(IDS), past_key_values=cache, **SHORT)
    fresh = SqueezeCache(model, budget=11)
    want = model.generate(IDS, attention_mask=torch.ones_like(IDS), past_key_values=fresh, **SHORT)
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize("chunk", [None, 6, 5])
@pytest.mark.parametrize("pads", [(0, 24), (0, -3), (0, -6), (0, -12)], ids=str)
def test_masks_of_generate(model, pads, chunk):
    words = ["row 1", "all padding"] if pads[1] > 0 else ["right padding", "left"]
    for how in ("cache", "squeeze"):
        with contextlib.ExitStack() as stack:
            arguments = {"past_key_values": SqueezeCache(model, budget=11)} if how == "cache" else {}
            stack.enter_context(refused(InputError, *words))
            if how == "squeeze":
                stack.enter_context(squeeze(model, budget=11))
            model.generate(IDS, attention_mask=padded(*pads), prefill_chunk_size=chunk, **arguments, **SHORT)


def test_prepared_masks(model):
    cache = SqueezeCache(model, budget=11)
    with refused(InputError, "prepared masks", "2-D"):
        model(input_ids=IDS, attention_mask={"full_attention": None}, past_key_values=cache)


# ---------------------------------------------------------------- used caches


def used(model, **options):
    cache = SqueezeCache(model, budget=11, **options)
    model.generate(IDS, attention_mask=torch.ones_like(IDS), past_key_values=cache, **SHORT)
    return cache


def test_changed_batch(model):
    cache = used(model)
    with refused(InputError, "batch of 2", "1 rows", r"reset\(\)"):
        model(input_ids=ONE[:, :3], past_key_values=cache)
    with refused(InputError, "batch of 2", "3 rows", r"reset\(\)"):
        model(input_ids=torch.cat([IDS, ONE])[:, :1], past_key_values=cache)


def test_shorter_prompt_without_reset(model):
    cache = used(model)
    for width in (5, 24, 29):
        ids = torch.randint(3, 101, (2, width))
        with refused(CacheStateError, "29 tokens", str(width), r"reset\(\)"):
            model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **SHORT)
    cache.reset()
    assert model.generate(IDS[:, :5], past_key_values=cache, **SHORT).shape == (2, 11)


def test_shorter_embeddings_without_reset(model):
    cache = used(model)
    ids = IDS[:, :5]
    with refused(CacheStateError, "29 tokens", r"reset\(\)"):
        model.generate(
            inputs_embeds=model.get_input_embeddings()(ids), attention_mask=torch.ones_like(ids),
            past_key_values=cache, **SHORT,
        )  # fmt: skip


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("how", ["forward", "generate"])
def test_cache_of_another_model(model, attached, how):
    twin = tiny_model("llama")
    own = SqueezeCache(twin, budget=11) if attached else None
    said = tokens(twin)
    cache = SqueezeCache(model, budget=11)
    with refused(CacheStateError, "model", "make a SqueezeCache for each model"):
        if how == "forward":
            twin(input_ids=IDS, past_key_values=cache)
        else:
            twin.generate(IDS, past_key_values=cache, **SHORT)
    assert tokens(twin) == said
    got = model.generate(IDS, past_key_values=cache, **SHORT)  # its own model still takes it
    want = model.generate(IDS, past_key_values=SqueezeCache(model, budget=11), **SHORT)
    assert got.tolist() == want.tolist()
    del own


def test_copy_of_an_attached_model_refuses_its_cache(model):
    cache = SqueezeCache(model, budget=11)
    twin = copy.deepcopy(model)
    with refused(CacheStateError, "another model|the model it was made for"):
        twin.generate(IDS, past_key_values=cache, **SHORT)


def test_squeeze_twice(model):
    handle = squeeze(model, budget=11)
    try:
        with pytest.raises(CacheStateError, match=r"already squeezed.*detach"):
            squeeze(model, budget=12)
        assert model.generate(IDS, **SHORT).shape == (2, 30)
        assert {plan.base_budget for plan in handle.plans} == {11}
    finally:
        handle.detach()
    assert tokens(model) == SAID["llama"]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("how", ["forward", "generate"])
def test_detached_cache(model, how, others, reset):
    """``reset()`` does not bring it back, whether or not another cache is on the model."""
    cache = used(model)
    other = SqueezeCache(model, budget=11) if others else None
    cache.detach()
    if reset:
        cache.reset()
    with refused(CacheStateError, "detached"):
        if how == "forward":
            model(input_ids=IDS[:, :1], past_key_values=cache)
        else:
            ids = torch.cat([IDS, IDS], dim=1)
            model.generate(ids, past_key_values=cache, **SHORT)
    del other


@pytest.mark.parametrize("layer", [99, 4, -5])
def test_layers_that_do_not_exist(model, layer):
    for cache in (used(model), SqueezeCache(model, budget=11)):
        with refused(ConfigError, f"layer {layer}", "4 layers"):
            cache.kept_positions(layer)


def test_pickling(model, tmp_path):
    cache = used(model)
    with refused(UnsupportedFeatureError, "pickle", "cache.save"):
        pickle.dumps(cache)
    with refused(UnsupportedFeatureError, "pickle", "cache.save"):
        torch.save(cache, tmp_path / "cache.pt")


# ------------------------------------------------------- features that cannot be


def test_shallow_copies(model):
    with refused(UnsupportedFeatureError, "shallow copy", "deepcopy"):
        copy.copy(used(model))


def test_crop(model):
    cache = used(model)
    for count in (-1, 3):
        with refused(UnsupportedFeatureError, "cropped", "greedy"):
            cache.crop(count)
    with refused(UnsupportedFeatureError, "roll"):
        cache.activate_past_recording()
    with refused(UnsupportedFeatureError, "first prompt"):
        cache.early_initialization(1, 2, 8, torch.float32, "cpu")


GENERATES = {
    "prompt lookup": ({"prompt_lookup_num_tokens": 3}, ["prompt-lookup", "greedy"]),
    "assisted": ({"assistant_model": "tiny"}, ["assisted", "greedy"]),
    "static": ({"cache_implementation": "static"}, ["cache_implementation='static'", "unset"]),
    "quantized": ({"cache_implementation": "quantized"}, ["cache_implementation='quantized'", "unset"]),
    "dynamic": ({"cache_implementation": "dynamic"}, ["cache_implementation='dynamic'", "unset"]),
    "no cache": ({"use_cache": False}, ["use_cache=False", "use_cache=True"]),
}


@pytest.mark.parametrize("how", ["cache", "squeeze"])
@pytest.mark.parametrize("kind", GENERATES)
def test_generate_options(model, kind, how):
    options, words = GENERATES[kind]
    options = dict(options)
    if "assistant_model" in options:
        options["assistant_model"] = tiny_model("llama", seed=1, num_hidden_layers=2)
    with refused(UnsupportedFeatureError, *words):
        if how == "cache":
            model.generate(ONE, past_key_values=SqueezeCache(model, budget=11), **options, **SHORT)
        else:
            with squeeze(model, budget=11):
                model.generate(ONE, **options, **SHORT)


def test_a_squeezed_assistant_is_refused_or_right(model):
    """A squeezed model that helps another: the other's text must not change."""
    assistant = tiny_model("llama", seed=1)
    want = model.generate(ONE, **SHORT)
    with squeeze(assistant, budget=11), contextlib.suppress(SqueezeError):
        assert model.generate(ONE, assistant_model=assistant, **SHORT).tolist() == want.tolist()
    assert tokens(model) == SAID["llama"]


@pytest.mark.parametrize(
    ("family", "dropout"),
    [
        ("llama", {"attention_dropout": 0.3}),
        ("gpt2", {"attn_pdrop": 0.3, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
        ("falcon-7b", {"attention_dropout": 0.3}),
        ("falcon-new", {"attention_dropout": 0.3}),
    ],
)
def test_attention_dropout(family, dropout):
    model = tiny_model(family, **dropout)
    said = tokens(model)
    cache = SqueezeCache(model, budget=11)
    model.train()
    with pytest.raises(UnsupportedFeatureError, match=r"dropout.*model\.eval\(\)"):
        model.generate(ONE, past_key_values=cache, **SHORT)
    model.eval()
    cache.reset()
    assert model.generate(ONE, past_key_values=cache, **SHORT).shape == (1, 30)
    del cache
    assert tokens(model) == said


@pytest.mark.parametrize("family", ["llama", "falcon-new"])
def test_gradient_checkpointing(family):
    """It takes the cache from the layers, so none of ours could be filled (Falcon's would be, and nobody be told)."""
    model = tiny_model(family)
    said = tokens(model)
    model.gradient_checkpointing_enable()
    model.train()
    cache = SqueezeCache(model, budget=11, policy="h2o", allocator="uniform")
    with pytest.raises(UnsupportedFeatureError, match=r"gradient checkpointing.*model\.eval\(\)"):
        model(input_ids=IDS, past_key_values=cache)
    model.eval()  # nothing is checkpointed there
    model(input_ids=IDS, past_key_values=cache)
    assert cache.lengths() == [11] * 4
    model.gradient_checkpointing_disable()
    assert tokens(model) == said


# --------------------------------------------------------------------- models


def make(name, **shape):
    import transformers

    config = getattr(transformers, name.partition(":")[0])(**shape)
    return getattr(transformers, name.partition(":")[2])(config).eval()


TINY = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
TINY_T5 = {
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
TINY_BART = {
    "vocab_size": 64, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64,
}  # fmt: skip
TINY_GPT = {
    "vocab_size": 64,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "rotary_dim": 4,
    "n_inner": 24,
}
TINY_BERT = {**TINY, "max_position_embeddings": 64}
UNSUPPORTED = {
    "bloom": (
        "BloomConfig:BloomForCausalLM", {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    ),
    "mpt": ("MptConfig:MptForCausalLM", {"vocab_size": 64, "d_model": 16, "n_layers": 2, "n_heads": 2}),
    "falcon-alibi": (
        "FalconConfig:FalconForCausalLM",
        {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "alibi": True},
    ),
    "t5": ("T5Config:T5ForConditionalGeneration", TINY_T5),
    "bart": ("BartConfig:BartForConditionalGeneration", TINY_BART),
    "gptj": ("GPTJConfig:GPTJForCausalLM", TINY_GPT),
    "codegen": ("CodeGenConfig:CodeGenForCausalLM", {**TINY_GPT, "n_head": 4}),
    "mamba": ("MambaConfig:MambaForCausalLM", {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2}),
    "jamba": (
        "JambaConfig:JambaForCausalLM",
        {**TINY, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
         "use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4},
    ),
    "qwen3-next": (
        "Qwen3NextConfig:Qwen3NextForCausalLM",
        {**TINY, "head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8,
         "shared_expert_intermediate_size": 8, "linear_num_value_heads": 2, "linear_num_key_heads": 2,
         "linear_key_head_dim": 8, "linear_value_head_dim": 8,
         "layer_types": ["linear_attention", "full_attention"]},
    ),
    "bert": ("BertConfig:BertModel", TINY_BERT),
    "bert-mlm": ("BertConfig:BertForMaskedLM", TINY_BERT),
    "modernbert": ("ModernBertConfig:ModernBertModel", {**TINY_BERT, "pad_token_id": 0}),
    "vit": ("ViTConfig:ViTModel", {**TINY, "image_size": 8, "patch_size": 4}),
}  # fmt: skip
WHY = {
    "bloom": "ALiBi|AttentionInterface", "mpt": "ALiBi|AttentionInterface",
    "falcon-alibi": "ALiBi", "t5": "encoder-decoder", "bart": "encoder-decoder",
    "gptj": "AttentionInterface", "codegen": "AttentionInterface", "qwen3-next": "linear_attention",
    "bert": "decoder-only|causal", "bert-mlm": "decoder-only|causal", "modernbert": "decoder-only|causal",
}  # fmt: skip


NEWLY_ALIKE = ("gptj", "codegen")


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_unsupported_models(kind):
    model = make(*UNSUPPORTED[kind][:1], **UNSUPPORTED[kind][1])
    if kind in NEWLY_ALIKE and compat.uses_interface(model):
        pytest.skip("carried by this release: tests/exact/test_newer_releases.py")
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    for use in (SqueezeCache, squeeze):
        with pytest.raises(UnsupportedModelError) as caught:
            use(model, budget=11)
        assert re.search(WHY.get(kind, "."), str(caught.value), re.IGNORECASE), caught.value
        assert type(model).__name__ in str(caught.value)
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == before


class WithConfig(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = {"num_hidden_layers": 4}


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), WithConfig(), object(), None, "gpt2", 7], ids=range(6))
def test_things_that_are_no_models(thing):
    for use in (SqueezeCache, squeeze):
        with pytest.raises(UnsupportedModelError, match=r"expected a transformers model, got \w+"):
            use(thing, budget=11)


def test_a_model_that_is_gone():
    cache = SqueezeCache(tiny_model("llama"), budget=11)
    gc.collect()
    with pytest.raises(CacheStateError, match="model of this cache is gone"):
        copy.deepcopy(cache)


# ------------------------------------------------ big but honest values must work


@pytest.mark.parametrize("budget", [10**6, 10**20, "900000GiB", 1.0, "100%"], ids=str)
@pytest.mark.parametrize("policy", POLICIES.names())
def test_budgets_beyond_all_use(model, budget, policy):
    mask = padded(0, 9)
    want = model.generate(IDS, attention_mask=mask, **SHORT)
    cache = SqueezeCache(model, budget=budget, policy=policy, allocator="uniform")
    got = model.generate(IDS, attention_mask=mask, past_key_values=cache, **SHORT)
    if budget not in (1.0, "100%"):
        assert got.tolist() == want.tolist()
    for step in range(3):  # by hand nothing tells how long the answer gets
        cache = SqueezeCache(model, budget=budget, policy=policy, allocator="uniform") if not step else cache
        ids = IDS if not step else IDS[:, :1]
        seen = torch.cat([mask, torch.ones(2, step, dtype=torch.long)], dim=1)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=seen, past_key_values=cache)
