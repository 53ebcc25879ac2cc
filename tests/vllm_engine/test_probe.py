"""Budgets of KV heads for each prompt, by what the model looks back at: the library's tokens with allocator="probe"."""

import itertools

import pytest
import torch

from squeezeattention import BudgetPlan, SqueezeCache
from squeezeattention.errors import BudgetError, ConfigError, UnsupportedFeatureError
from squeezeattention.testing import position_ids

from .conftest import BLOCK, LAYERS, assert_greedy, draw, generate, held_blocks, number_of, scheduler_of, stepped
from .test_slab import told_by_the_library
from .test_slab_pieces import PIECES, WHOLE, told_with_hits

BASE, TOKENS = 80, 40
#: One too short for a piece, one that fills no head, and others that are cut.
LENGTHS = (30, 75, 260, 150, 333)
PLANNED = LAYERS * BASE // BLOCK


def probe(policy="h2o", plan=None, **more):
    plan = plan or BudgetPlan.from_budgets([BASE] * LAYERS)
    return {"plan": plan.to_dict(), "policy": policy, "per_prompt": {"allocator": "probe"}, **more}


def prompts_of(lengths, seed):
    """Texts that say much of what they have said before."""
    found = []
    for length, drawn in zip(lengths, draw(lengths, seed=seed), strict=True):
        piece = drawn[: max(1, length // 3)]
        found.append([*itertools.islice(itertools.cycle(piece + drawn[-5:]), length)])
    return found


@torch.no_grad()
def told_by_probe(model, policy, prompt, reply, base=BASE):
    """Logits at each token of the reply, and the plan, of a cache that is told how long the reply gets."""
    cache = SqueezeCache(model, policy=policy, allocator="probe", budget=base, new_tokens=len(reply))
    with cache.prefilling(len(prompt)):
        rows = [model(torch.tensor([prompt]), past_key_values=cache).logits[0, -1]]
    for index, token in enumerate(reply[:-1]):
        at = position_ids(torch.ones(1, len(prompt) + index + 1, dtype=torch.long))[:, -1:]
        rows.append(model(torch.tensor([[token]]), past_key_values=cache, position_ids=at).logits[0, -1])
    return torch.stack(rows), cache.plan


def assert_told(model, policy, prompts, replies):
    """Every reply is the library's; and the longest one's not what equal heads, or another prompt's budgets, give."""
    plans = []
    for prompt, reply in zip(prompts, replies, strict=True):
        logits, plan = told_by_probe(model, policy, prompt, reply)
        assert_greedy(logits, reply)
        plans.append([plan.heads(layer, 2) for layer in range(LAYERS)])
    last = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    assert len({tuple(plan) for plan in plans}) >= 3, "all prompts have the same budgets"
    other = next(plan for plan in plans if plan != plans[last] and len({*plan}) > 1)
    for name, heads in {"equal heads": [(BASE, BASE)] * LAYERS, "another prompt's": other}.items():
        told = told_by_the_library(model, policy, prompts[last], replies[last], heads).argmax(-1).tolist()
        assert told != replies[last], f"{name} budgets say the same: the comparison proves nothing"
    return plans


def chosen_by(llm):
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    return vars(runner)["_squeezeattention"].chosen


def plans_of(llm, prompts, tokens, replies, each_step=lambda step: None):
    """By prompt: the budgets that the engine chose, once they are known."""
    plans = {}
    for step, _ in enumerate(stepped(llm, prompts, tokens, replies)):
        plans |= {number_of(request): list(own.rooms) for request, own in chosen_by(llm).items()}
        each_step(step)
    return plans


@pytest.mark.parametrize("policy", ["h2o", "streaming_llm", "tova", "keydiff"])
def test_tokens_equal_the_librarys(engine, model, policy):
    """Prompts of mixed lengths, in pieces; each prompt's plan is the library's, to the token."""
    prompts, replies = prompts_of(LENGTHS, seed=31), {}
    plans = plans_of(engine(probe(policy), **PIECES), prompts, TOKENS, replies)
    told = assert_told(model, policy, prompts, [replies[index] for index in range(len(prompts))])
    assert [plans[index] for index in range(len(prompts))] == told


def test_prompts_about_as_long_as_a_piece(engine, model):
    """None to repeat, one piece or more, read in parts of one, whole blocks or one token; and answers of one token."""
    lengths = (1, 2, 31, 32, 33, 39, 40, 41, 64, 72, 73, 160, 161)
    llm, prompts = engine(probe(), **{**PIECES, "max_num_batched_tokens": 16}), prompts_of(lengths, seed=36)
    for tokens in (TOKENS, 1):
        for prompt, reply in zip(prompts, generate(llm, prompts, tokens), strict=True):
            assert_greedy(told_by_probe(model, "h2o", prompt, reply)[0], reply)
    assert not held_blocks(llm)


def test_blocks_held_are_the_plans_at_every_step(engine):
    """The same for each prompt, its own blocks while it is read, and none is left, also of one that is cancelled."""
    llm = engine(probe(), **PIECES)
    scheduler, read = scheduler_of(llm), 0
    assert len(scheduler.kv_cache_config.kv_cache_groups) == LAYERS

    def look(step):
        nonlocal read
        if step == 12:
            llm.llm_engine.abort_request(["1", "4"], internal=False)
        for request, held in held_blocks(llm).items():
            known = scheduler.requests[request]
            whole = known.num_computed_tokens <= known.num_prompt_tokens
            assert sum(held) == PLANNED + whole * LAYERS * -(-known.num_prompt_tokens // BLOCK)
            read += not whole

    plans = plans_of(llm, prompts_of(LENGTHS, seed=32), TOKENS, {}, look)
    assert read >= 3 * (TOKENS - 2)
    assert not held_blocks(llm)
    assert {sum(map(sum, plan)) for plan in plans.values()} == {2 * LAYERS * BASE}


def test_prompts_that_begin_alike(engine, model):
    """Most of a prompt was read by another one; it is repeated over all the same, and has budgets of its own."""
    llm = engine(probe("tova"), enable_prefix_caching=True, **{**PIECES, "max_num_batched_tokens": 512})
    stem, *tails = prompts_of((200, 7, 60, 100), seed=33)
    generate(llm, [stem], 4)  # the others end in one step, each with scores of its own for what they share
    prompts = [stem + tail for tail in tails]
    replies, hits = told_with_hits(llm, prompts, TOKENS)
    assert hits == [192] * 3
    assert_told(model, "tova", prompts, replies)
    assert not held_blocks(llm)


def test_read_again(engine, model):
    """Requests that are sent back are read again, and keep their budgets if they had some."""
    llm = engine(probe(), **PIECES)
    scheduler, prompts, replies, seen = scheduler_of(llm), prompts_of((100, 135, 260, 190), seed=34), {}, set()

    def send_back(step):
        if step in (4, 14, 33):
            seen.update(request.num_computed_tokens > request.num_prompt_tokens for request in scheduler.running)
            scheduler.reset_prefix_cache(reset_running_requests=True)

    plans = plans_of(llm, prompts, TOKENS, replies, send_back)
    assert seen == {True, False}
    told = assert_told(model, "h2o", prompts, [replies[index] for index in range(len(prompts))])
    assert [plans[index] for index in range(len(prompts))] == told
    assert not held_blocks(llm)


@pytest.mark.parametrize("eager", [True, pytest.param(False, marks=pytest.mark.processes)])  # a minute to compile
def test_whole_prompts_and_a_compiled_model(engine, model, eager):
    prompts, replies = prompts_of(LENGTHS, seed=35), {}
    plans = plans_of(engine(probe(), **{**PIECES, **WHOLE}, enforce_eager=eager), prompts, TOKENS, replies)
    told = assert_told(model, "h2o", prompts, [replies[index] for index in range(len(prompts))])
    assert [plans[index] for index in range(len(prompts))] == told


def test_refusals(engine, monkeypatch):
    plan, heads = BudgetPlan.from_budgets([BASE] * LAYERS), BudgetPlan.from_budgets([[BASE, BASE + 2]] * LAYERS)
    small, least = BudgetPlan.from_budgets([20] * LAYERS), BudgetPlan.from_budgets([32] * LAYERS)
    for given, options, error, words in (
        (probe(design="compact"), {}, UnsupportedFeatureError, "compact design cannot"),
        (probe(prefill="windowed"), {}, UnsupportedFeatureError, "reads prompts in full"),
        (probe(plan=small), {}, BudgetError, "3 blocks of 32, less than one for each of 6 layers"),
        (probe(plan=heads) | {"per_prompt": {"allocator": "squeeze"}}, {}, UnsupportedFeatureError, "divide a total"),
        (probe() | {"per_prompt": {"allocator": "probe", "groups": 3}}, {}, ConfigError, "not of 'probe'"),
        (probe() | {"per_prompt": {"allocator": "calibrated"}}, {}, UnsupportedFeatureError, "same for all prompts"),
        (probe("streaming_llm", plan=least, sinks=40), {}, BudgetError, "less than the 41 that streaming_llm needs"),
        (probe(), {"enable_lora": True}, UnsupportedFeatureError, "LoRA adapters"),
    ):
        with pytest.raises(error, match=words):
            engine(given, **{**PIECES, **options})
    engine(probe(plan=heads), **PIECES)  # its total is what counts
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    for several in ("tensor_parallel_size", "pipeline_parallel_size"):
        with pytest.raises((UnsupportedFeatureError, RuntimeError), match=several.split("_")[0]):
            engine({"plan": plan.to_dict(), "per_prompt": {"allocator": "probe"}}, **PIECES, **{several: 2})
