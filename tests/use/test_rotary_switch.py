"""Models whose rotary scaling switches at a length throw their cache away there, to read the text anew."""

import pytest
import torch
from transformers import DynamicCache, Phi3Config, Phi3ForCausalLM

from squeezeattention import SqueezeCache, squeeze
from squeezeattention.errors import CacheStateError

SWITCH = 32
ANSWER = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "output_logits": True,
          "return_dict_in_generate": True}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [1.0, 2, 3, 4],
            "original_max_position_embeddings": SWITCH}  # fmt: skip
    config = Phi3Config(
        vocab_size=101, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, original_max_position_embeddings=SWITCH,
        rope_parameters=rope, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Phi3ForCausalLM(config).eval()


def text(length):
    return torch.arange(length)[None] * 7 % 90 + 3


@pytest.mark.parametrize("length", [SWITCH - 10, SWITCH + 1, 60])
@pytest.mark.parametrize("policy", ["streaming_llm", "h2o", "echo"])
def test_a_prompt_on_either_side_is_carried(model, length, policy):
    want = model.generate(text(length), past_key_values=DynamicCache(config=model.config), **ANSWER)
    cache = SqueezeCache(model, 400, policy)
    got = model.generate(text(length), past_key_values=cache, **ANSWER)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-5, rtol=0)
    assert cache.lengths() == [length + 5] * 3
    with squeeze(model, budget=12, policy=policy) as squeezed:
        model.generate(text(length), **ANSWER)
        assert sum(squeezed.plan.budgets) == 36


def test_a_text_that_crosses_is_refused_before_the_step_that_would(model):
    # made in the call itself, so that nothing of ours stands in front of generate when it is looked up
    with pytest.raises(CacheStateError, match=f"after {SWITCH} tokens, to read the whole text anew"):
        model.generate(text(SWITCH - 2), past_key_values=SqueezeCache(model, 400, "h2o"), **ANSWER)
    with squeeze(model, budget=12, policy="h2o") as squeezed:
        with pytest.raises(CacheStateError, match=f"after {SWITCH} tokens, to read the whole text anew"):
            model.generate(text(SWITCH - 2), **ANSWER)
        assert max(squeezed.cache.head_lengths()[0]) <= 12
    assert "prepare_inputs_for_generation" not in vars(model)
