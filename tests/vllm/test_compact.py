"""Whole blocks of sinks and newest tokens inside vLLM: token by token what explicit masks give."""

import pytest

from squeezeattention import BudgetPlan
from squeezeattention.engine import BlockPlan

from .conftest import BLOCK, LAYERS, assert_greedy, draw, generate, told_by_masks

BUDGETS = [64, 64, 160, 256, 96, 64]
TOKENS = 100
LENGTHS = (5, 31, 32, 33, 150, 300, 64)


def layers_of(budgets, sinks):
    return [(layer.sinks, layer.recent) for layer in BlockPlan.of(BudgetPlan.from_budgets(budgets), BLOCK, sinks=sinks).layers]


def squeeze(budgets=BUDGETS, **settings):
    return {"plan": BudgetPlan.from_budgets(budgets).to_dict(), **settings}


@pytest.mark.parametrize("prefill", ["full", "windowed"])
@pytest.mark.parametrize("policy", ["streaming_llm", "sliding_window"])
def test_tokens_equal_explicit_masks(engine, model, policy, prefill):
    """A batch of mixed lengths, in one chunk and in small ones; and it is not what the full cache says."""
    prompts = draw(LENGTHS)
    layers = layers_of(BUDGETS, 4 if policy == "streaming_llm" else 0)
    llm = engine(squeeze(policy=policy, prefill=prefill))
    replies = generate(llm, prompts, TOKENS)
    full = [(0, 10**6)] * LAYERS
    differs = 0
    for prompt, reply in zip(prompts, replies, strict=True):
        assert_greedy(told_by_masks(model, prompt, reply, layers, windowed=prefill == "windowed"), reply)
        logits = told_by_masks(model, prompt, reply, full, windowed=False)
        differs += (logits.argmax(-1) != __import__("torch").tensor(reply)).any().item()
    assert differs >= 2, "the plan changes nothing: the comparison proves nothing"
    chunked = engine(squeeze(policy=policy, prefill=prefill), max_num_batched_tokens=48, max_num_seqs=16)
    assert generate(chunked, prompts, TOKENS) == replies
