"""Families that newer releases of transformers made alike: carried there, and then exact as any other."""

import pytest
import torch
import transformers

from squeezeattention import POLICIES, SqueezeCache
from squeezeattention.errors import UnsupportedModelError
from squeezeattention.hf import compat
from squeezeattention.hf.layout import inspect_model
from squeezeattention.testing import REFERENCE_POLICIES, NaiveReference, Recorded, teacher_forced

from ..random_models import spread

LENGTHS, STEPS, TOLERANCE = (41, 22, 37), 12, 1e-4
SHAPE = {"vocab_size": 101, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256, "rotary_dim": 4, "n_inner": 48}
FAMILIES = {"gptj": ("GPTJConfig", "GPTJForCausalLM"), "codegen": ("CodeGenConfig", "CodeGenForCausalLM")}


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_carried_now_equals_the_reference(family, policy):
    config, kind = (getattr(transformers, name) for name in FAMILIES[family])
    torch.manual_seed(0)
    model = kind(config(**SHAPE, bos_token_id=1, eos_token_id=2)).eval()
    if not compat.uses_interface(model):
        pytest.skip("this release of transformers computes its attention elsewhere; it is refused")
    spread(model)
    rows = [torch.randint(3, 101, (n,)).tolist() for n in LENGTHS]
    generated = torch.randint(3, 101, (3, STEPS))
    if policy == "expected_attention":
        with pytest.raises(UnsupportedModelError, match="not of the usual form"):
            SqueezeCache(model, policy=policy)
        return
    cache = SqueezeCache(model, budget=17, policy=policy, allocator="squeeze")
    recorded = Recorded(cache)
    ours = teacher_forced(model, cache, rows, generated, after_step=recorded.note)
    moved = 0.0
    for index, row in enumerate(rows):
        kept = policy if policy in REFERENCE_POLICIES else recorded.choice(index)
        reference = NaiveReference(model, kept, inspect_model(model).windows, 4)
        want = reference.run(row, cache.plans[index].budgets, generated[index].tolist())
        assert (ours[index] - want).abs().max() <= TOLERANCE
        with torch.no_grad():
            full = model(input_ids=torch.tensor([row + generated[index].tolist()])).logits[0]
        moved = max(moved, (full - want).abs().max().item())
    assert moved > 100 * TOLERANCE
