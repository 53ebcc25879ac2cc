"""Whole blocks of sinks and newest tokens inside vLLM: token by token what explicit masks give."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.sampling_params import BeamSearchParams

from squeezeattention import BudgetPlan
from squeezeattention.engine import BlockPlan, Forecast, LayerBlocks, assign_lanes
from squeezeattention.errors import UnsupportedFeatureError

from .conftest import (
    BLOCK,
    LAYERS,
    assert_greedy,
    draw,
    generate,
    held_blocks,
    preemptions,
    scheduler_of,
    stepped,
    told_by_masks,
)

BUDGETS = [64, 64, 160, 256, 96, 64]
TOKENS = 100
LENGTHS = (5, 31, 32, 33, 150, 300, 64)


def layers_of(budgets, sinks):
    plan = BlockPlan.of(BudgetPlan.from_budgets(budgets), BLOCK, sinks=sinks)
    return [(layer.sinks, layer.recent) for layer in plan.layers]


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
        differs += (logits.argmax(-1) != torch.tensor(reply)).any().item()
    assert differs >= 2, "the plan changes nothing: the comparison proves nothing"
    chunked = engine(squeeze(policy=policy, prefill=prefill), max_num_batched_tokens=48, max_num_seqs=16)
    assert generate(chunked, prompts, TOKENS) == replies


@pytest.mark.parametrize("how", ["full", "windowed", "slab", "no plan"])
def test_beams_that_no_plan_would_bound_are_refused(engine, model, how):
    """Each step of vLLM's beam search reads the whole text as a prompt, which only a windowed prefill bounds."""
    settings = {"policy": "h2o"} if how == "slab" else {"policy": "streaming_llm", "prefill": how}
    options = {"enable_chunked_prefill": False} if how == "slab" else {}
    llm = engine(None if how == "no plan" else squeeze(**settings), **options)
    llm.renderer.get_tokenizer = lambda: SimpleNamespace(eos_token_id=2, decode=lambda *given, **how: "")
    params, (prompt,) = BeamSearchParams(beam_width=1, max_tokens=6, ignore_eos=True), draw((150,))
    if how in ("full", "slab"):
        with pytest.raises(UnsupportedFeatureError, match="beam search in vLLM"):
            llm.beam_search([{"prompt_token_ids": prompt}], params)
        assert generate(llm, [prompt], 2)[0]  # goes on to work
        return
    (found,) = llm.beam_search([{"prompt_token_ids": prompt}], params)
    layers = layers_of(BUDGETS, 4) if how == "windowed" else [(0, 10**6)] * LAYERS
    reply = found.sequences[0].tokens[len(prompt) :]
    assert_greedy(told_by_masks(model, prompt, reply, layers, windowed=how == "windowed"), reply)


@pytest.mark.parametrize("prefill", ["full", "windowed"])
def test_what_earlier_prompts_left_is_used_and_changes_nothing(engine, model, prefill):
    """Prefix caching: prompts that begin alike, and a second turn on what was generated."""
    llm = engine(squeeze(prefill=prefill), enable_prefix_caching=True)
    stem = draw([170])[0]
    first = [stem + tail for tail in draw([5, 40, 90], seed=1)]
    again = [stem + tail for tail in draw([7, 60], seed=2)]
    told = generate(llm, first, TOKENS)
    turns = [first[0] + told[0] + draw([20], seed=3)[0], first[1][:200]]
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    layers, hits = layers_of(BUDGETS, 4), []
    for prompts in (again, turns):
        for prompt, out in zip(
            prompts, llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False), strict=True
        ):
            reply = list(out.outputs[0].token_ids)
            assert_greedy(told_by_masks(model, prompt, reply, layers, windowed=prefill == "windowed"), reply)
            hits.append(out.num_cached_tokens)
    assert min(hits[:2]) >= 160  # the stem's five whole blocks
    if prefill == "full":  # what was generated saw less than a prompt does
        assert hits[2] <= len(first[0])


@pytest.mark.parametrize("prefill", ["full", "windowed"])
def test_preempted_requests_go_on_as_if_nothing_had_happened(engine, model, prefill, monkeypatch):
    """Many short prompts fit, and outgrow the pool while they are answered."""
    prompts = draw([20, 35, 28, 60, 44], seed=4)
    llm = engine(squeeze(prefill=prefill), num_gpu_blocks_override=70, max_model_len=320, max_num_batched_tokens=512)
    preempted = preemptions(llm, monkeypatch)
    replies = generate(llm, prompts, 220)
    assert any(generated > BLOCK for generated in preempted), "nothing was preempted while it was decoding"
    layers = layers_of(BUDGETS, 4)
    for prompt, reply in zip(prompts, replies, strict=True):
        assert_greedy(told_by_masks(model, prompt, reply, layers, windowed=prefill == "windowed"), reply)
    assert not held_blocks(llm)


@pytest.mark.parametrize("per_prompt", [False, True])
def test_an_answer_is_no_prompt(engine, model, per_prompt):
    """A request that is sent back finds its answer in the prefix cache, as a part of another prompt, whose tokens saw
    more: it must not be taken. The end of its own prompt is read again, from where blocks are given back."""
    llm = engine(squeeze([160] * LAYERS if per_prompt else BUDGETS, per_prompt=per_prompt), enable_prefix_caching=True)
    (prompt,) = draw((300,), seed=27)
    (reply,) = generate(llm, [prompt], TOKENS)
    generate(llm, [prompt + reply], 1)
    scheduler, replies, held = scheduler_of(llm), {}, {}
    for step, _ in enumerate(stepped(llm, [prompt], TOKENS, replies)):
        held[step] = [sorted(own) for own in held_blocks(llm).values()]
        if step == TOKENS - 10:
            request = scheduler.running.pop()
            scheduler._preempt_request(request, 0.0)
    assert request.num_preemptions == 1
    assert replies[0] == reply
    assert held[TOKENS - 4] == held[TOKENS - 12]
    if not per_prompt:
        assert_greedy(told_by_masks(model, prompt, reply, layers_of(BUDGETS, 4), windowed=False), reply)


@pytest.mark.parametrize("prefill", ["full", "windowed"])
def test_blocks_held_are_those_predicted_at_every_step(engine, prefill):
    llm = engine(squeeze(prefill=prefill), max_num_batched_tokens=64, max_num_seqs=8)
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    lengths = {}
    for index, prompt in enumerate(draw([20, 150, 65], seed=5)):
        lengths[str(index)] = len(prompt)
        llm.llm_engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
    scheduler, seen = scheduler_of(llm), 0
    groups = [spec.kv_cache_spec.layer for spec in scheduler.kv_cache_config.kv_cache_groups]
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        for request, held in held_blocks(llm).items():
            tokens = scheduler.requests[request].num_computed_tokens
            in_prompt = prefill == "full" and tokens <= scheduler.requests[request].num_prompt_tokens
            if in_prompt:
                want = [-(-tokens // BLOCK)] * len(groups)
            elif tokens > scheduler.requests[request].num_prompt_tokens:
                want = [group.held(tokens, BLOCK) for group in groups]
                seen += 1
            else:
                continue  # a chunk of a windowed prompt: budget and chunk at most
            assert held == want, (request, tokens)
    assert seen >= 2 * TOKENS
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 399


def test_nothing_changes_without_a_plan(engine, model):
    prompts = draw(LENGTHS)
    llm = engine()
    for prompt, reply in zip(prompts, generate(llm, prompts, 40), strict=True):
        assert_greedy(told_by_masks(model, prompt, reply, [(0, 10**6)] * LAYERS, windowed=False), reply)
    assert len(scheduler_of(llm).kv_cache_config.kv_cache_groups) == 1


def test_layers_that_keep_everything_give_the_full_cache(engine):
    prompts = draw(LENGTHS)
    assert generate(engine(squeeze([1024] * LAYERS)), prompts, 40) == generate(engine(), prompts, 40)


def test_groups_are_those_foreseen(engine):
    layers = BlockPlan.of(BudgetPlan.from_budgets(BUDGETS), BLOCK, sinks=4).layers
    lanes = assign_lanes(layers)
    groups = scheduler_of(engine(squeeze())).kv_cache_config.kv_cache_groups
    assert sorted(group.kv_cache_spec.layer for group in groups) == sorted(lanes.groups)
    assert isinstance(groups[0].kv_cache_spec.layer, LayerBlocks)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 24), min_size=1, max_size=4))
def test_lanes_give_the_groups_foreseen(counts):
    """Held against vLLM's own grouping."""
    from vllm.v1.core.kv_cache_utils import _get_kv_cache_groups_uniform_page_size
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    from squeezeattention.engine.spec import SqueezeSpec

    layers = [LayerBlocks(1, kind + 1) for kind, count in enumerate(counts) for _ in range(count)]
    found = assign_lanes(layers)
    plain = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=32, dtype=torch.float32)
    specs = {
        f"layers.{index}": SqueezeSpec.of(plain, layer, windowed_prefill=False, lane=lane)
        for index, (layer, lane) in enumerate(zip(layers, found.lanes, strict=True))
    }
    groups = _get_kv_cache_groups_uniform_page_size(specs)
    assert sorted(group.kv_cache_spec.layer for group in groups) == sorted(found.groups)
    assert max(len(group.layer_names) for group in groups) <= found.group_size


def test_as_many_texts_fit_as_foreseen(engine, monkeypatch):
    """At equal bytes more than four times as many as without a plan, and none is preempted; with more, some are."""
    blocks = BlockPlan.of(BudgetPlan.from_budgets([160, 160, 96, 96, 64, 64]), BLOCK, sinks=32)
    token, tokens, stock_blocks = 2 * 2 * 32 * 4, 96 + 416, 84
    memory = stock_blocks * BLOCK * token * LAYERS
    forecast = Forecast.of(blocks, token, memory)
    assert forecast.waste == 0
    assert forecast.max_num_seqs >= 4 * forecast.stock_seqs(tokens)

    def preempted(llm, texts):
        scheduler, seen, most = scheduler_of(llm), [], 0
        original = scheduler._preempt_request
        monkeypatch.setattr(scheduler, "_preempt_request", lambda *a, **k: (seen.append(1), original(*a, **k))[1])
        params = SamplingParams(temperature=0.0, max_tokens=tokens - 96, ignore_eos=True, detokenize=False)
        for index, prompt in enumerate(draw([96] * texts, seed=6)):
            llm.llm_engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
            most = max(most, len(scheduler.running))
        monkeypatch.undo()
        return len(seen), most

    options = {"max_model_len": tokens, "max_num_seqs": 64, "max_num_batched_tokens": 512}
    plan = {"plan": BudgetPlan.from_budgets(blocks.tokens).to_dict(), "sinks": 32}
    llm = engine(plan, num_gpu_blocks_override=forecast.n_blocks, **options)
    assert preempted(llm, forecast.max_num_seqs) == (0, forecast.max_num_seqs)
    assert preempted(llm, forecast.max_num_seqs + 4)[0] > 0
    stock = engine(num_gpu_blocks_override=stock_blocks, **options)
    fits = forecast.stock_seqs(tokens)
    assert preempted(stock, fits) == (0, fits)
    assert preempted(stock, fits + 1)[0] > 0
