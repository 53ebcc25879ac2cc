"""What a model's own forward does with masks decides, not what its config says; what cannot be followed is refused."""

import pytest
import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, sdpa_mask

from squeezeattention import SqueezeCache
from squeezeattention.errors import InputError, UnsupportedFeatureError, UnsupportedModelError
from squeezeattention.hf.layout import inspect_model
from squeezeattention.testing import NaiveReference, tiny_model

from ..random_models import spread

IDS = torch.randint(3, 90, (2, 40), generator=torch.Generator().manual_seed(5))
SHAPE = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
GEMMA4 = {
    "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "sliding_window": 9,
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 101, "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
GEMMA3N = {
    "vocab_size_per_layer_input": 101, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "laurel_rank": 4,
    "activation_sparsity_pattern": [0.0] * 4, "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def build(model_class, config_class, *, plain=False, **settings):
    """A tiny random model; skips where this release of transformers has no such family."""
    if not hasattr(transformers, model_class):
        pytest.skip("a newer family")
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**settings if plain else {**SHAPE, **settings})
    return spread(getattr(transformers, model_class)(config).eval())


def gemma3(**settings):
    text = {**SHAPE, "sliding_window": 9, "query_pre_attn_scalar": 8, **settings}
    text["layer_types"] = ["sliding_attention", "full_attention"] * 2
    return build(
        "Gemma3ForConditionalGeneration", "Gemma3Config", plain=True, text_config=text, vision_config=VISION,
        image_token_index=100, mm_tokens_per_image=4,
    )  # fmt: skip


def in_turns(model, cache, ids=IDS, mask=None):
    """Logits of a prompt, steps, and a further turn."""
    parts = []
    with torch.no_grad():
        for start, stop in [(0, 20), *((at, at + 1) for at in range(20, 26)), (26, 40)]:
            given = {} if mask is None else {"attention_mask": mask[:, :stop]}
            parts.append(model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True, **given).logits)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("allocator", ["global", "squeeze", "uniform"])
def test_a_window_that_the_model_does_not_use(allocator):
    model = build("MoshiForCausalLM", "MoshiConfig", sliding_window=7, ffn_dim=48)
    with torch.no_grad():
        want = model(input_ids=IDS, use_cache=False).logits
    cache = SqueezeCache(model, budget=100, allocator=allocator)
    torch.testing.assert_close(in_turns(model, cache), want, atol=1e-4, rtol=0)
    assert [layer.window for layer in cache.layers] == [None] * 4


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_mask_of_the_model_itself_is_refused(implementation):
    doge = ("DogeForCausalLM", "DogeConfig")
    model, twin = (build(*doge, keep_window_size=8, attn_implementation=implementation) for _ in range(2))
    cache = SqueezeCache(model, budget=100)
    with pytest.raises(UnsupportedModelError, match="a mask of its own"), torch.no_grad():
        model(input_ids=IDS, past_key_values=cache)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, twin(input_ids=IDS).logits)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("what", ["own", "none", "other"])
def test_masks_that_are_changed_on_the_way_to_a_layer(what, implementation):
    """Stands in for families that nobody has seen: one layer is given another mask than the config says."""
    model = tiny_model("qwen3-window", attn_implementation=implementation)
    given = []

    def note(module, args, kwargs):
        given.append(kwargs["attention_mask"])

    def change(module, args, kwargs):
        mask = kwargs["attention_mask"]
        return args, {**kwargs, "attention_mask": {"own": mask + 0, "none": None, "other": given[0]}[what]}

    first, last = model.model.layers[0].self_attn, model.model.layers[3].self_attn
    first.register_forward_pre_hook(note, with_kwargs=True)
    last.register_forward_pre_hook(change, with_kwargs=True)
    cache = SqueezeCache(model, budget=100)
    with pytest.raises(UnsupportedModelError, match="layer 3 of Qwen3Attention attends"), torch.no_grad():
        model(input_ids=IDS, past_key_values=cache)


@pytest.mark.parametrize("prefill", ["exact", "bounded"])
@pytest.mark.parametrize("padded", [False, True])
def test_text_of_a_model_that_prepares_masks_around_its_decoder(prefill, padded):
    model, mask = gemma3(), torch.ones_like(IDS)
    if padded:
        mask[1, :5] = 0
    later = mask.clone()
    later[0, 22:25] = 0  # hidden when the last turn begins

    def read(cache):
        parts = []
        with torch.no_grad():
            for start, stop, given in [(0, 20, mask), *((at, at + 1, mask) for at in range(20, 26)), (26, 40, later)]:
                given = given[:, :stop]
                positions = (given.cumsum(1) - 1).clamp(min=0)[:, start:]
                out = model(
                    input_ids=IDS[:, start:stop], attention_mask=given, past_key_values=cache, position_ids=positions
                )
                parts.append(out.logits)
        return torch.cat(parts, dim=1) * mask[..., None]

    cache = SqueezeCache(model, budget=100, prefill=prefill, chunk_size=8, allocator="uniform", policy="h2o")
    torch.testing.assert_close(read(cache), read(DynamicCache(config=model.config)), atol=1e-4, rtol=0)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    ours = model.generate(IDS, past_key_values=SqueezeCache(model, budget=100), **options)
    assert torch.equal(ours, model.generate(IDS, **options))


def test_an_image_that_is_seen_both_ways_is_refused():
    model = gemma3()
    ids = torch.tensor([[1, 100, 100, 100, 100, 7, 8]])
    cache = SqueezeCache(model, budget=100)
    given = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 28, 28), "token_type_ids": (ids == 100).long()}
    with torch.no_grad():
        want = model(**given).logits
        with pytest.raises((InputError, UnsupportedModelError), match="image"):
            model(**given, past_key_values=cache)
        assert torch.equal(model(**given).logits, want)
        model(input_ids=IDS, past_key_values=cache)  # nothing had changed


def test_an_encoder_inside_the_decoder_is_refused_by_name():
    vision = {"embed_dim": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = {name: value for name, value in SHAPE.items() if name not in ("head_dim", "num_key_value_heads")}
    model = build(
        "IdeficsForVisionText2Text", "IdeficsConfig", plain=True, **shape, additional_vocab_size=0, ffn_dim=48,
        cross_layer_interval=2, vision_config={**vision, "image_size": 28, "patch_size": 14},
    )  # fmt: skip
    given = {"pixel_values": torch.randn(1, 1, 3, 28, 28), "image_attention_mask": torch.ones(1, 40, 1)}
    cache = SqueezeCache(model, budget=100)
    with torch.no_grad(), pytest.raises(UnsupportedModelError, match=r"VisionAttention.*inside the decoder"):
        model(input_ids=IDS[:1], **given, past_key_values=cache)


def test_a_prompt_that_is_seen_both_ways_is_refused_by_name():
    text = {**SHAPE, "model_type": "gemma"}
    model = build(
        "PaliGemmaForConditionalGeneration", "PaliGemmaConfig", plain=True, text_config=text,
        vision_config={**VISION, "projection_dim": 32}, image_token_index=100,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="attends to its prompt both ways"):
        SqueezeCache(model, budget=100)


def test_sizes_of_a_mask_that_were_asked_for_by_hand_go_to_no_other_cache():
    model = gemma3()
    cache = SqueezeCache(model, budget=100)
    cache.get_mask_sizes(20, 0)
    with torch.no_grad():
        want = gemma3()(input_ids=IDS, use_cache=False).logits
        assert torch.equal(model(input_ids=IDS, past_key_values=DynamicCache()).logits, want)
        cache.get_mask_sizes(40, 0)
        mask = create_causal_mask(model.config.get_text_config(), torch.zeros(2, 40, 32), torch.ones(2, 40), None)
    assert mask is None or mask.stride()[-1] != 0


@pytest.mark.parametrize("policy", ["h2o", "streaming_llm", "criticalkv"])
def test_layers_of_different_widths(policy):
    model = build("Gemma4ForCausalLM", "Gemma4TextConfig", **GEMMA4)
    with torch.no_grad():
        want = model(input_ids=IDS).logits
    cache = SqueezeCache(model, budget=100, policy=policy)
    torch.testing.assert_close(in_turns(model, cache), want, atol=1e-4, rtol=0)
    assert cache.plans[0].model.endswith("x2x8+1x16")
    one, other = (cache.layers[index].store.bytes_per_token for index in (0, 1))
    assert (one, other) == (2 * 2 * 8 * 4, 2 * 16 * 4)


def test_layers_of_different_widths_with_a_small_budget():
    """Held against a forward over the whole text with explicit masks: the newest 6 tokens in each layer."""
    model = build("Gemma4ForCausalLM", "Gemma4TextConfig", **GEMMA4)
    cache = SqueezeCache(model, budget=6, policy="sliding_window", allocator="uniform")
    with torch.no_grad():
        parts = [model(input_ids=IDS[:1, :20], past_key_values=cache).logits]
        parts += [model(input_ids=IDS[:1, [at]], past_key_values=cache).logits for at in range(20, 40)]
    seen = torch.ones(40, 40, dtype=torch.bool).tril()
    for query in range(20, 40):
        seen[query, : query - 5] = False
    windowed = seen & torch.ones_like(seen).triu(-8)
    masks = {"full_attention": seen[None, None], "sliding_attention": windowed[None, None]}
    with torch.no_grad():
        want = model(input_ids=IDS[:1], attention_mask=masks, use_cache=False).logits
    torch.testing.assert_close(torch.cat(parts, dim=1), want, atol=1e-4, rtol=0)


def test_layers_that_read_an_image_are_refused():
    if not hasattr(transformers, "MllamaForCausalLM"):
        pytest.skip("a newer family")
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig

    shape = {**SHAPE, "cross_attention_layers": [1]}
    shape.pop("head_dim")
    model = transformers.MllamaForCausalLM(MllamaTextConfig(**shape)).eval()
    with pytest.raises(UnsupportedModelError, match=r"attend to an image.*\(1\)"):
        SqueezeCache(model, budget=100)


def test_a_stream_in_which_attention_cannot_be_found_is_said_at_once_and_the_advice_is_true():
    model = build("Gemma3nForCausalLM", "Gemma3nTextConfig", **GEMMA3N)
    with pytest.raises(UnsupportedModelError, match=r'cosine.*"probe", "uniform" or fixed'):
        SqueezeCache(model, allocator="squeeze")
    with torch.no_grad():
        want = model(input_ids=IDS).logits
    for allocator in ("probe", "uniform", [100] * 4):
        cache = SqueezeCache(model, allocator=allocator, budget=100 if isinstance(allocator, str) else None)
        torch.testing.assert_close(in_turns(model, cache), want, atol=1e-4, rtol=0)


@pytest.fixture
def registered():
    """An attention function of a user's; what was there before is put back."""
    tables = AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping
    before = [dict(table) for table in tables]

    def register(name, function):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)

    yield register
    for table, was in zip(tables, before, strict=True):
        table.clear()
        table.update(was)


def mine(module, query, key, value, mask, **kwargs):
    """Scores are doubled."""
    return sdpa_attention_forward(module, 2 * query, key, value, mask, **kwargs)


@pytest.mark.parametrize("name", ["mine", "sdpa"])
def test_an_attention_function_of_a_users_is_refused_by_name(registered, name):
    model = tiny_model("llama")
    registered(name, mine)
    model.set_attn_implementation(name)
    with pytest.raises(UnsupportedModelError, match=f"'{name}'.*registered by hand.*sdpa"):
        SqueezeCache(model, budget=100)


def test_one_that_is_chosen_later_is_refused_before_anything_changes(registered):
    model = tiny_model("llama")
    cache = SqueezeCache(model, budget=100)
    with torch.no_grad():
        want = model(input_ids=IDS).logits
        model(input_ids=IDS[:, :20], past_key_values=cache)
        registered("mine", mine)
        model.set_attn_implementation("mine")
        with pytest.raises(UnsupportedModelError, match="'mine'"):
            model(input_ids=IDS[:, 20:], past_key_values=cache)
        model.set_attn_implementation("sdpa")
        got = model(input_ids=IDS[:, 20:], past_key_values=cache).logits
    torch.testing.assert_close(got, want[:, 20:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("prefill", ["exact", "bounded"])
def test_attention_weights_are_refused(prefill):
    model = tiny_model("llama", attn_implementation="eager")
    cache = SqueezeCache(model, budget=100, prefill=prefill)
    with pytest.raises(UnsupportedFeatureError, match="output_attentions"), torch.no_grad():
        model(input_ids=IDS, past_key_values=cache, output_attentions=True)
    with pytest.raises(UnsupportedFeatureError, match="output_attentions"):
        model.generate(
            IDS, past_key_values=cache, output_attentions=True, return_dict_in_generate=True, max_new_tokens=2
        )
    assert cache.get_seq_length() == 0
    model = tiny_model("llama", attn_implementation="eager", output_attentions=True)
    cache = SqueezeCache(model, budget=100, prefill=prefill)
    with pytest.raises(UnsupportedFeatureError, match="output_attentions"), torch.no_grad():
        model(input_ids=IDS, past_key_values=cache)
    with torch.no_grad():
        assert len(model(input_ids=IDS).attentions) == 4


def test_the_naive_reference_goes_by_the_same_windows():
    """What tests hold this library against must not take its windows from the config either."""
    model = build("MoshiForCausalLM", "MoshiConfig", sliding_window=7, ffn_dim=48)
    cache = SqueezeCache(model, budget=12, policy="h2o", allocator="uniform")
    prompt, new = IDS[0, :30].tolist(), IDS[0, 30:].tolist()
    with torch.no_grad():
        parts = [model(input_ids=IDS[:1, :30], past_key_values=cache).logits[0]]
        parts += [model(input_ids=IDS[:1, [at]], past_key_values=cache).logits[0] for at in range(30, 40)]
    assert inspect_model(model).windows == (7,) * 4
    want = NaiveReference(model, "h2o", [None] * 4, 2).run(prompt, cache.plans[0].budgets, new)
    torch.testing.assert_close(torch.cat(parts), want.float(), atol=1e-4, rtol=0)
