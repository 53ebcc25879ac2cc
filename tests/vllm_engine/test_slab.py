"""Single tokens of any policy inside vLLM: the tokens that the library's own cache gives, at the same budgets."""

import dataclasses

import pytest
import torch

from squeezeattention import POLICIES, BudgetPlan, SqueezeCache
from squeezeattention.engine.settings import what_lacks
from squeezeattention.testing import position_ids

from .conftest import BLOCK, LAYERS, assert_greedy, draw, generate, held_blocks, number_of, scheduler_of, stepped

BUDGETS = [64, 32, 96, 160, 64, 32]
#: The same blocks, but for the model's two KV heads not in equal parts; a layer of equal ones among them.
HEADS = [[16, 112], [48, 16], [96, 96], [250, 70], [10, 118], [57, 7]]
LENGTHS = (5, 31, 33, 150, 64, 200, 90)
TOKENS = 100
#: One that fills no head for a while, one that fills some, and one that is cut in all.
HEAD_LENGTHS, HEAD_TOKENS = (5, 90, 260), 50
OPTIONS = {"enable_chunked_prefill": False, "max_model_len": 512, "max_num_batched_tokens": 1024}
PIECES = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64, "max_num_seqs": 16}

POLICY_NAMES = [name for name in POLICIES if what_lacks(POLICIES.create(name)) is None]


def slab(policy, budgets=BUDGETS):
    return {"plan": BudgetPlan.from_budgets(budgets).to_dict(), "policy": policy, "design": "slab"}


@torch.no_grad()
def told_by_the_library(model, policy, prompt, reply, budgets=BUDGETS):
    """Logits at each token of the reply: the prompt read whole, the reply fed token by token."""
    cache = SqueezeCache(model, policy=policy, allocator=budgets)
    rows = [model(torch.tensor([prompt]), past_key_values=cache).logits[0, -1]]
    for index, token in enumerate(reply[:-1]):
        at = position_ids(torch.ones(1, len(prompt) + index + 1, dtype=torch.long))[:, -1:]
        rows.append(model(torch.tensor([[token]]), past_key_values=cache, position_ids=at).logits[0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_tokens_equal_the_librarys(engine, model, policy):
    prompts = draw(LENGTHS, seed=9)
    replies = generate(engine(slab(policy), **OPTIONS), prompts, TOKENS)
    differs = 0
    for prompt, reply in zip(prompts, replies, strict=True):
        assert_greedy(told_by_the_library(model, policy, prompt, reply), reply)
        differs += told_by_the_library(model, policy, prompt, reply, [512] * LAYERS).argmax(-1).tolist() != reply
    assert differs >= 2, "the plan changes nothing: the comparison proves nothing"


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_heads_of_different_budgets(engine, model, policy):
    """Tokens equal the library's with the same plan by head, and would not with equal heads, or with heads swapped."""
    prompts = draw(HEAD_LENGTHS, seed=12)
    replies = generate(engine(slab(policy, HEADS), **OPTIONS), prompts, HEAD_TOKENS)
    for prompt, reply in zip(prompts, replies, strict=True):
        assert_greedy(told_by_the_library(model, policy, prompt, reply, HEADS), reply)
    others = {"equal": BUDGETS, "swapped": [heads[::-1] for heads in HEADS]}
    for name, budgets in others.items():
        told = told_by_the_library(model, policy, prompts[-1], replies[-1], budgets)
        assert told.argmax(-1).tolist() != replies[-1], f"{name} heads say the same: the comparison proves nothing"


def test_budgets_by_head_are_what_is_held(engine):
    """The bytes that a request holds are its plan's, at every step; none are left, also of one that is cancelled."""
    llm = engine(slab("h2o", HEADS), **OPTIONS)
    planned, steps = sum(map(sum, HEADS)), 0
    for steps, _ in enumerate(stepped(llm, draw(LENGTHS, seed=13), 40, {}), 1):
        if steps == 10:
            llm.llm_engine.abort_request(["3"], internal=False)
        for held in held_blocks(llm).values():
            assert sum(held) * BLOCK * 2 == planned  # a block of one layer has so many tokens of two heads
    assert steps >= 40
    assert not held_blocks(llm)


def test_plans_by_the_length_of_the_prompt(engine, model):
    """Each request has the plan for prompts of its length: its tokens, and its blocks at every step."""
    short = [[40, 24], [10, 54], [64, 64], [32, 32], [100, 28], [20, 44]]
    plans = {50: short, 200: HEADS}
    made = [
        dataclasses.replace(BudgetPlan.from_budgets(own), prompt_tokens=n, policy="h2o") for n, own in plans.items()
    ]
    llm = engine({"plan": [plan.to_dict() for plan in reversed(made)]}, **OPTIONS)
    prompts, replies = draw((50, 51, 300, 20), seed=14), {}
    own = [short if len(prompt) <= 50 else HEADS for prompt in prompts]
    for _ in stepped(llm, prompts, 40, replies):
        for request, held in held_blocks(llm).items():
            assert sum(held) * BLOCK * 2 == sum(map(sum, own[number_of(request)]))
    assert not held_blocks(llm)
    for index, prompt in enumerate(prompts):
        assert_greedy(told_by_the_library(model, "h2o", prompt, replies[index], own[index]), replies[index])
    other = told_by_the_library(model, "h2o", prompts[1], replies[1], short)
    assert other.argmax(-1).tolist() != replies[1], "the other plan says the same: the comparison proves nothing"


@pytest.mark.parametrize(
    ("options", "budgets"),
    [
        ({"tensor_parallel_size": 2}, BUDGETS),
        pytest.param({"pipeline_parallel_size": 2, "enforce_eager": False}, BUDGETS, marks=pytest.mark.processes),
        pytest.param({"pipeline_parallel_size": 2, "enforce_eager": False}, HEADS, marks=pytest.mark.processes),
        pytest.param({"tensor_parallel_size": 2, **PIECES}, BUDGETS, marks=pytest.mark.processes),
        pytest.param(
            {"pipeline_parallel_size": 2, "enforce_eager": False, **PIECES}, HEADS, marks=pytest.mark.processes
        ),
    ],
    ids=["TP=2", "PP=2", "PP=2 by head", "TP=2 in pieces", "PP=2 by head in pieces"],
)
def test_two_processes(engine, model, options, budgets, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    prompts = draw(LENGTHS, seed=10)
    replies = generate(engine(slab("h2o", budgets), **{**OPTIONS, **options}), prompts, 60)
    for prompt, reply in zip(prompts, replies, strict=True):
        assert_greedy(told_by_the_library(model, "h2o", prompt, reply, budgets), reply)


def test_ranks_cannot_hold_different_numbers_of_tokens(engine, monkeypatch):
    from squeezeattention.errors import UnsupportedFeatureError

    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    with pytest.raises(UnsupportedFeatureError, match="budgets by KV head cannot be combined with tensor parallelism"):
        engine(slab("h2o", HEADS), tensor_parallel_size=2, **OPTIONS)
    with pytest.raises(UnsupportedFeatureError, match="tensor parallelism under policy 'tova'"):
        engine(slab("tova"), tensor_parallel_size=2, **OPTIONS)


def test_a_request_holds_its_slab_and_no_more(engine, model, monkeypatch):
    """More requests than fit: the others wait, none is preempted, and each answers as if it were alone."""
    needed = sum(budget // BLOCK for budget in BUDGETS)  # groups of one layer
    llm = engine(slab("h2o"), num_gpu_blocks_override=3 * needed + 1, **OPTIONS)
    scheduler, preempted, most = scheduler_of(llm), [], 0
    monkeypatch.setattr(scheduler, "_preempt_request", lambda request, *a, **k: preempted.append(request))
    prompts, replies = draw(LENGTHS, seed=11), {}
    for _ in stepped(llm, prompts, 60, replies):
        most = max(most, len(scheduler.running))
        assert all(sum(held) == needed for held in held_blocks(llm).values())
    assert (most, preempted) == (3, [])
    for index, prompt in enumerate(prompts):
        assert_greedy(told_by_the_library(model, "h2o", prompt, replies[index]), replies[index])
    assert not held_blocks(llm)
