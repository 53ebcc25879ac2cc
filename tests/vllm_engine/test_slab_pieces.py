"""Prompts of the slab that are read in pieces, or begin as an earlier one did: the library's tokens all the same."""

from dataclasses import replace

import pytest

from squeezeattention import POLICIES, BudgetPlan
from squeezeattention.errors import UnsupportedFeatureError
from squeezeattention.policies import Scored

from .conftest import BLOCK, LAYERS, assert_greedy, draw, generate, held_blocks, scheduler_of, stepped
from .test_slab import BUDGETS, HEADS, POLICY_NAMES, slab, told_by_the_library

PIECES = {"max_model_len": 512, "max_num_batched_tokens": 48, "max_num_seqs": 16, "enable_chunked_prefill": True}
WHOLE = {"enable_chunked_prefill": False, "max_num_batched_tokens": 512}
LENGTHS, TOKENS = (5, 90, 260, 33, 150), 40
PLANNED = sum(map(sum, HEADS)) // (2 * BLOCK)
SHARED = [name for name in POLICY_NAMES if not POLICIES.create(name).needs_scores]


def assert_told(model, policy, prompts, replies, heads=HEADS):
    for prompt, reply in zip(prompts, replies, strict=True):
        assert_greedy(told_by_the_library(model, policy, prompt, reply, heads), reply)


def test_a_prompt_in_pieces_is_cut_as_a_whole(engine, model):
    """Of a policy that sums attention over all of them; the others come in pieces below."""
    prompts = draw(LENGTHS, seed=21)
    replies = generate(engine(slab("h2o", HEADS), **PIECES), prompts, TOKENS)
    assert_told(model, "h2o", prompts, replies)
    equal = told_by_the_library(model, "h2o", prompts[2], replies[2], BUDGETS)
    assert equal.argmax(-1).tolist() != replies[2], "equal heads say the same: the comparison proves nothing"


def test_a_prompts_blocks_are_given_back_when_it_is_read(engine, model):
    """All blocks from the beginning, the slab alone from the step after the prompt's last; layers that share tables."""
    budgets = [96, 64, 96, 64, 96, 64]
    llm = engine(slab("h2o", budgets), **PIECES)
    scheduler, prompts, replies, read = scheduler_of(llm), draw(LENGTHS, seed=22), {}, 0
    assert len(scheduler.kv_cache_config.kv_cache_groups) == 2
    for _ in stepped(llm, prompts, TOKENS, replies):
        for request, held in held_blocks(llm).items():
            known = scheduler.requests[request]
            whole = known.num_computed_tokens <= known.num_prompt_tokens
            prompt = -(-known.num_prompt_tokens // BLOCK) if whole else 0
            assert sorted(held) == [2 + prompt, 3 + prompt]
            read += not whole
    assert read >= len(prompts) * (TOKENS - 2)
    assert not held_blocks(llm)
    assert_told(model, "h2o", prompts, [replies[index] for index in range(len(prompts))], budgets)


@pytest.mark.parametrize("policy", SHARED)
def test_prompts_that_begin_alike(engine, model, policy):
    """Only the rest is read, and each is cut for itself; prompts that come at once share what the first one writes."""
    llm = engine(slab(policy, HEADS), enable_prefix_caching=True, **PIECES)
    stem, *tails = draw((200, 7, 60, 33, 1), seed=23)
    prompts = [stem + tail for tail in tails]
    first = generate(llm, prompts[:1], TOKENS)
    replies, hits = told_with_hits(llm, [*prompts, stem[:192]], TOKENS)
    assert hits == [192] * 4 + [160]  # whole blocks, and a token is always left to be read
    assert replies[0] == first[0]
    assert_told(model, policy, [*prompts, stem[:192]], replies)
    fresh, new = draw((170,), seed=24)[0], draw((9, 40, 70), seed=25)
    together = [fresh + tail for tail in new]
    replies, hits = told_with_hits(llm, together, TOKENS)
    assert hits[0] == 0
    assert_told(model, policy, together, replies)
    assert not held_blocks(llm)
    assert scheduler_of(llm).kv_cache_manager.block_pool.get_num_free_blocks() == 399


def told_with_hits(llm, prompts, tokens):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in outputs], [one.num_cached_tokens for one in outputs]


@pytest.mark.parametrize("caching", [False, True])
def test_read_again(engine, model, caching):
    """Requests that are sent back while they read or answer are read again, prompt and answer, and say the same."""
    policy = "tova" if caching else "h2o"
    llm = engine(slab(policy, HEADS), **PIECES, enable_prefix_caching=caching)
    scheduler, prompts, replies, seen = scheduler_of(llm), draw((100, 135, 28, 260), seed=26), {}, set()
    for step, _ in enumerate(stepped(llm, prompts, TOKENS, replies)):
        if step in (3, 12, 14, 31):
            seen |= {request.num_computed_tokens > request.num_prompt_tokens for request in scheduler.running}
            scheduler.reset_prefix_cache(reset_running_requests=True)
    assert seen == {True, False}
    assert_told(model, policy, prompts, [replies[index] for index in range(len(prompts))])
    assert not held_blocks(llm)


@pytest.mark.parametrize("options", [PIECES, PIECES | WHOLE], ids=["pieces", "whole"])
def test_read_again_with_plans_by_length(engine, model, options):
    """Prompt and answer together are longer than the shorter plan's prompts: it is the prompt that counts."""
    short = [[40, 24], [10, 54], [64, 64], [32, 32], [100, 28], [20, 44]]
    plans = [
        replace(BudgetPlan.from_budgets(own), prompt_tokens=n, policy="h2o") for n, own in ((100, short), (200, HEADS))
    ]
    llm = engine({"plan": [plan.to_dict() for plan in plans]}, **options)
    scheduler, prompts, replies = scheduler_of(llm), draw((90, 150), seed=30), {}
    for step, _ in enumerate(stepped(llm, prompts, TOKENS, replies)):
        if step == 30:
            scheduler.reset_prefix_cache(reset_running_requests=True)
    assert_told(model, "h2o", prompts[:1], [replies[0]], short)
    assert_told(model, "h2o", prompts[1:], [replies[1]])
    assert not held_blocks(llm)


def test_an_answer_is_no_prompt(engine, model):
    """A request that is sent back finds its answer in the prefix cache, as another prompt's: it must not be taken."""
    llm = engine(slab("keydiff", HEADS), **{**PIECES, "max_num_batched_tokens": 512}, enable_prefix_caching=True)
    prompt = draw((100,), seed=27)[0]
    (reply,) = generate(llm, [prompt], 80)
    generate(llm, [prompt + reply], 1)
    scheduler, replies = scheduler_of(llm), {}
    for step, _ in enumerate(stepped(llm, [prompt], 80, replies)):
        if step == 70:
            request = scheduler.running.pop()
            scheduler._preempt_request(request, 0.0)
    assert request.num_preemptions == 1
    assert replies[0] == reply
    assert_told(model, "keydiff", [prompt], [reply])


def test_more_requests_than_fit(engine, model):
    """Who is admitted has all of its blocks: the others wait, and nobody is sent back."""
    most = PLANNED + LAYERS * -(-260 // BLOCK)
    llm = engine(slab("h2o", HEADS), **{**PIECES, "max_model_len": 320}, num_gpu_blocks_override=2 * most + 1)
    scheduler, prompts, replies, running = scheduler_of(llm), draw((260, 200, 240, 250, 90), seed=28), {}, 0
    for step, _ in enumerate(stepped(llm, prompts, TOKENS, replies)):
        running = max(running, len(scheduler.running))
        if step == 6:
            llm.llm_engine.abort_request(["1"], internal=False)
    assert running >= 2
    assert all(request.num_preemptions == 0 for request in scheduler.requests.values())
    for index in (0, 2, 3, 4):
        assert_told(model, "h2o", [prompts[index]], [replies[index]])
    assert not held_blocks(llm)


@pytest.mark.parametrize("options", [{**PIECES, "enable_prefix_caching": True}, WHOLE], ids=["pieces", "whole"])
def test_samples_of_one_request(engine, model, options):
    """Each reads and cuts the prompt for itself, and is as likely as the library says; a seed says the same again."""
    from vllm import SamplingParams

    llm, (prompt,) = engine(slab("tova", HEADS), **{**PIECES, **options}), draw((150,), seed=31)
    seed = 5 if options is WHOLE else None  # vLLM's CPU build cannot have one for a prompt that is read in pieces
    params = SamplingParams(n=3, seed=seed, temperature=0.9, max_tokens=TOKENS, ignore_eos=True, detokenize=False,
                            logprobs=0)  # fmt: skip

    def sampled():
        (out,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        return [list(one.token_ids) for one in out.outputs], [one.logprobs for one in out.outputs]

    replies, given = sampled()
    assert len({*map(tuple, replies)}) == 3
    for reply, rows in zip(replies, given, strict=True):
        told = told_by_the_library(model, "tova", prompt, reply, HEADS).log_softmax(-1)
        for index, token in enumerate(reply):
            assert rows[index][token].logprob == pytest.approx(told[index, token].item(), abs=1e-3)
    if seed is not None:
        assert sampled()[0] == replies
    assert not held_blocks(llm)


class Last(Scored):
    """A policy of somebody's own that looks at several queries."""

    name = "last"
    last_queries = 4

    def score(self, view):
        return view.attention().sum(dim=(2, 3))


@pytest.fixture
def last():
    POLICIES.register("last", Last)
    yield
    POLICIES.unregister("last")


def test_refusals(engine, last):
    for policy, options, words in (
        ("h2o", {"enable_prefix_caching": True}, "prefix caching .* under policy 'h2o' .it sums the attention"),
        ("last", WHOLE | {"enable_prefix_caching": True}, "prefix caching .* last 4 queries"),
        ("last", {"enable_chunked_prefill": True}, "chunked prefill .* last 4 queries"),
    ):
        with pytest.raises(UnsupportedFeatureError, match=words):
            engine(slab(policy, HEADS), **{**PIECES, **options})


def test_what_lies_beside_the_pool_is_there_once(engine):
    """12 bytes a slot, not for each layer: with a block table of its own each one's pages lie in the same tensor."""
    llm = engine(slab("h2o", HEADS), **PIECES)
    generate(llm, draw((40,), seed=29), 2)
    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()
    beside = {id(layer.self_attn.attn.impl.slab._beside): layer.self_attn.attn.impl.slab._beside
              for layer in model.model.layers}  # fmt: skip
    (one,) = beside.values()
    assert one.bytes() == 12 * 400 * BLOCK * 2
