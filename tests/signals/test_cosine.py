"""The cosine is taken at the right place in every family, over real tokens only, in fp32, across chunks."""

import pytest
import torch

from squeezeattention import SqueezeCache
from squeezeattention.hf.layout import inspect_model
from squeezeattention.hf.residual import find_spots
from squeezeattention.testing import FAMILIES, left_padded, position_ids, teacher_forced, tiny_model

#: The child of a layer that receives the stream after attention; None = attention and MLP run in parallel.
SPOTS = {
    **dict.fromkeys(FAMILIES, "post_attention_layernorm"),
    "falcon-7b": None, "falcon-new": None, "gpt-neox": None, "phi": None, "cohere": None,
    "opt": "final_layer_norm", "gpt2": "ln_2", "gemma2": "pre_feedforward_layernorm",
    "gemma3": "pre_feedforward_layernorm", "olmo2": "mlp",
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_where_attention_joins_the_stream(family):
    model = tiny_model(family)
    layout = inspect_model(model)
    assert {spot.child for spot in find_spots(model, layout)} == {SPOTS[family]}


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2", "olmo2", "gpt2", "phi", "falcon-7b"])
def test_values_by_hand(family):
    # Old releases let sdpa drop Gemma 2's softcap silently.
    model = tiny_model(family, **({"attn_implementation": "eager"} if family == "gemma2" else {}))
    layout = inspect_model(model)
    before, after, attended = {}, {}, {}
    handles = []
    for i, (layer, attention) in enumerate(zip(layout.layers, layout.attentions, strict=True)):
        handles.append(
            layer.register_forward_pre_hook(
                lambda m, a, k, i=i: before.__setitem__(i, a[0] if a else k["hidden_states"]), with_kwargs=True
            )
        )
        handles.append(attention.register_forward_hook(lambda m, a, o, i=i: attended.__setitem__(i, o[0])))
        if SPOTS[family]:
            spot = layer.get_submodule(SPOTS[family])
            handles.append(spot.register_forward_pre_hook(lambda m, a, i=i: after.__setitem__(i, a[0])))
    rows = [list(range(3, 3 + n)) for n in (31, 17, 26)]
    ids, mask = left_padded(rows)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask))
    for handle in handles:
        handle.remove()
    want = []
    for i in range(len(before)):
        joined = after[i] if SPOTS[family] else before[i] + attended[i]
        cosine = torch.cosine_similarity(before[i].double(), joined.double(), dim=-1)
        want.append([cosine[row][mask[row].bool()].mean().item() for row in range(len(rows))])
    for chunk in (None, 7):
        cache = SqueezeCache(model, budget=0.5, allocator="squeeze")
        teacher_forced(model, cache, rows, chunk=chunk)
        for row, plan in enumerate(cache.plans):
            assert plan.signal_values == pytest.approx([layer[row] for layer in want], abs=1e-5)


def test_half_precision_does_not_collapse_the_values():
    rows = [list(range(3, 80))]
    values = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model("llama", dtype=dtype)
        cache = SqueezeCache(model, budget=0.5, allocator="squeeze")
        teacher_forced(model, cache, rows)
        values[dtype] = cache.plan.signal_values
    assert values[torch.bfloat16] == pytest.approx(values[torch.float32], abs=5e-3)
    assert len({round(v, 7) for v in values[torch.bfloat16]}) == 4


def test_the_same_prompt_gives_the_same_plan():
    model = tiny_model("llama")
    plans = []
    for _ in range(3):
        cache = SqueezeCache(model, budget=0.5, allocator="squeeze")
        teacher_forced(model, cache, [list(range(3, 60))])
        plans.append(cache.plan)
    assert plans[0] == plans[1] == plans[2]
