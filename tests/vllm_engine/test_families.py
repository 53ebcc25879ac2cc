"""Other architectures than Llama: norms of queries and keys, fused projections, scaled residuals, experts."""

import pytest
import torch

from squeezeattention import BudgetPlan
from squeezeattention.testing import tiny_model

from .conftest import assert_greedy, draw, generate, told_by_masks
from .test_compact import layers_of
from .test_slab import told_by_the_library

BUDGETS = [160, 96, 128, 64]


@pytest.mark.parametrize("design", ["compact", "slab"])
@pytest.mark.parametrize("family", ["qwen3", "phi3", "granite", "mixtral"])
def test_tokens_are_those_of_the_reference(engine, family, design, tmp_path):
    model = tiny_model(
        family, hidden_size=128, head_dim=32, vocab_size=512, max_position_embeddings=2048, attn_implementation="eager"
    )
    model.save_pretrained(tmp_path)
    given = {"plan": BudgetPlan.from_budgets(BUDGETS).to_dict(), "design": design}
    given["policy"] = "streaming_llm" if design == "compact" else "h2o"
    prompts = draw((150, 300, 33, 230), seed=12)
    replies = generate(
        engine(given, model=str(tmp_path), enable_chunked_prefill=design == "compact", max_model_len=512), prompts, 80
    )
    differs = 0
    for prompt, reply in zip(prompts, replies, strict=True):
        if design == "compact":
            told = told_by_masks(model, prompt, reply, layers_of(BUDGETS, 4), windowed=False)
        else:
            told = told_by_the_library(model, "h2o", prompt, reply, BUDGETS)
        assert_greedy(told, reply)
        full = told_by_masks(model, prompt, reply, [(0, 10**6)] * len(BUDGETS), windowed=False)
        differs += (full.argmax(-1) != torch.tensor(reply)).any().item()
    assert differs >= 2, "the plan changes nothing: the comparison proves nothing"
