"""The same tokens from two processes: layers divided by heads, and one half of the layers each."""

import pytest

from .conftest import LAYERS, assert_greedy, draw, generate, told_by_masks
from .test_compact import BUDGETS, layers_of, squeeze


@pytest.mark.processes
@pytest.mark.parametrize("prefill", ["full", "windowed"])
@pytest.mark.parametrize(
    "options",
    [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2, "enforce_eager": False}],
    ids=["TP=2", "PP=2"],
)
def test_two_processes(engine, model, options, prefill, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    prompts = draw((5, 33, 150, 300, 64))
    replies = generate(engine(squeeze(prefill=prefill), **options), prompts, 60)
    layers, differs = layers_of(BUDGETS, 4), 0
    for prompt, reply in zip(prompts, replies, strict=True):
        assert_greedy(told_by_masks(model, prompt, reply, layers, windowed=prefill == "windowed"), reply)
        full = told_by_masks(model, prompt, reply, [(0, 10**6)] * LAYERS, windowed=False)
        differs += full.argmax(-1).tolist() != reply
    assert differs >= 2
