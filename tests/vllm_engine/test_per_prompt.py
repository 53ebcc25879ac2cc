"""Budgets chosen in the engine for each prompt, by its own cosine: against masks made from a measurement in HF."""

import pytest
import torch
from vllm import SamplingParams

from squeezeattention import BudgetPlan
from squeezeattention.engine import EngineSettings

from .conftest import (
    BLOCK,
    LAYERS,
    assert_greedy,
    draw,
    generate,
    held_blocks,
    preemptions,
    scheduler_of,
    told_by_masks,
)

TOKENS = 100
PLAN = BudgetPlan.from_budgets([160, 96, 128, 160, 64, 160])


def squeeze(**per_prompt):
    return {"plan": PLAN.to_dict(), "per_prompt": per_prompt or True}


def prompts_of(lengths, seed=0):
    """Texts of few different tokens among others: their layers differ more from each other's."""
    return [
        [3 + token % (4 + 60 * (index % 3)) for token in prompt]
        for index, prompt in enumerate(draw(lengths, seed=seed))
    ]


@torch.no_grad()
def cosines(model, prompt):
    """Mean over the prompt of cos(x, x + attention), by layer, from what the norms of the HF model are given."""
    seen, hooks = {}, []
    for index, layer in enumerate(model.model.layers):
        for place in ("input_layernorm", "post_attention_layernorm"):

            def note(module, args, index=index, place=place):
                seen[index, place] = args[0][0].float()

            hooks.append(getattr(layer, place).register_forward_pre_hook(note))
    model(torch.tensor([prompt]), use_cache=False)
    for hook in hooks:
        hook.remove()
    names = ("input_layernorm", "post_attention_layernorm")
    pairs = [tuple(seen[index, name] for name in names) for index in range(len(model.model.layers))]
    return [torch.cosine_similarity(before, after, dim=-1).mean().item() for before, after in pairs]


def expected(model, prompt, given):
    """(sinks, recent) of each layer."""
    planner = EngineSettings.read(given).planner(BLOCK)
    groups, layers = planner.plan(cosines(model, prompt)), [None] * len(model.model.layers)
    for group, members in zip(groups, planner.members, strict=True):
        for layer in members:
            layers[layer] = (group.sinks, group.recent)
    return layers


def assert_told(model, prompts, replies, given, also=()):
    """Every reply is the masks'; and it is not what another prompt's budgets, or those of ``also``, give."""
    own = [expected(model, prompt, given) for prompt in prompts]
    others = {*map(tuple, own), *map(tuple, also)}
    assert len(others) >= 2, "all prompts have the same budgets: the comparison proves nothing"
    differs = 0
    for prompt, reply, layers in zip(prompts, replies, own, strict=True):
        assert_greedy(told_by_masks(model, prompt, reply, layers, windowed=False), reply)
        for other in others - {tuple(layers)}:
            logits = told_by_masks(model, prompt, reply, other, windowed=False)
            differs += (logits.argmax(-1) != torch.tensor(reply)).any().item()
    assert differs >= 1, "the budgets change nothing: the comparison proves nothing"


@pytest.mark.parametrize("groups", [6, 3])
def test_tokens_equal_masks_of_each_prompts_own_budgets(engine, model, groups):
    given = squeeze(allocator="squeeze", groups=groups)
    prompts = prompts_of((150, 300, 33, 260, 190, 64, 5))
    replies = generate(engine(given), prompts, TOKENS)
    assert_told(model, prompts, replies, given)
    assert generate(engine(given, max_num_batched_tokens=48, max_num_seqs=16), prompts, TOKENS) == replies


def test_what_earlier_prompts_left_is_measured_too(engine, model):
    """Prefix caching: most of a prompt is not computed again, and its cosines count all the same."""
    given = squeeze()
    llm = engine(given, enable_prefix_caching=True)
    stems = prompts_of([170, 200, 230], seed=3)
    generate(llm, stems, 40)
    prompts = [stem + tail for stem, tail in zip(stems, prompts_of([20, 50, 9], seed=4), strict=True)]
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    assert min(output.num_cached_tokens for output in outputs) >= 160
    assert_told(model, prompts, [list(output.outputs[0].token_ids) for output in outputs], given)


def test_preempted_requests_keep_their_budgets(engine, model, monkeypatch):
    given = squeeze()
    llm = engine(given, num_gpu_blocks_override=90, max_model_len=400, max_num_batched_tokens=512)
    preempted = preemptions(llm, monkeypatch)
    prompts = prompts_of([100, 135, 28, 60, 144], seed=5)
    replies = generate(llm, prompts, 220)
    assert any(generated > BLOCK for generated in preempted), "nothing was preempted while it was decoding"
    assert_told(model, prompts, replies, given)
    assert not held_blocks(llm)


def test_blocks_held_are_those_chosen_at_every_step(engine, model):
    """Another division for each prompt, and never more than the plan's total."""
    given = squeeze()
    llm = engine(given, max_num_batched_tokens=64, max_num_seqs=8)
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS + 90, ignore_eos=True, detokenize=False)
    prompts = prompts_of([200, 150, 265], seed=6)
    planner = EngineSettings.read(given).planner(BLOCK)
    for index, prompt in enumerate(prompts):
        llm.llm_engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
    scheduler, seen = scheduler_of(llm), 0
    lanes = [group.kv_cache_spec.lane for group in scheduler.kv_cache_config.kv_cache_groups]
    own = [planner.plan(cosines(model, prompt)) for prompt in prompts]
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        for request, held in held_blocks(llm).items():
            known = scheduler.requests[request]
            tokens, prompt = known.num_computed_tokens, known.num_prompt_tokens
            if tokens <= prompt:
                assert held == [-(-tokens // BLOCK)] * len(lanes)
                continue
            plan = own[[len(text) for text in prompts].index(prompt)]
            assert held == [plan[lane].held(tokens, BLOCK) for lane in lanes]
            assert sum(held) <= planner.blocks_per_sequence
            seen += 1
    assert seen >= 2 * TOKENS
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 399
    assert not any(manager._chosen for manager in scheduler.kv_cache_manager.coordinator.single_type_managers)


def test_an_output_that_is_still_computed_takes_the_choices_along():
    """On a GPU the step's output comes later, from another thread; on the CPU it never does."""
    from types import SimpleNamespace

    from squeezeattention.engine import hooks

    class Later:
        def get_output(self):
            return SimpleNamespace(req_ids=["a"])

    told = []
    manager = SimpleNamespace(choose=lambda request, recent: told.append((request, recent)))
    coordinator = SimpleNamespace(single_type_managers=[manager])
    scheduler = SimpleNamespace(kv_cache_manager=SimpleNamespace(coordinator=coordinator))
    choices = SimpleNamespace(report=lambda: {"a": (3, 1)})
    for result in (Later(), SimpleNamespace(req_ids=["a"])):
        runner = SimpleNamespace(**{hooks.MARK: choices})
        out = hooks._sample_tokens(lambda runner, result=result: result, runner)
        output = out.get_output() if hasattr(out, "get_output") else out
        assert hooks._update_from_output(lambda *args: "done", scheduler, None, output) == "done"
    assert told == [("a", (3, 1))] * 2


def test_a_compiled_model_is_measured_too(engine, model):
    given, prompts = squeeze(), prompts_of((150, 300, 33, 260, 190))
    assert_told(model, prompts, generate(engine(given, enforce_eager=False), prompts, TOKENS), given)


@pytest.mark.processes
def test_ranks_agree(engine, model, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    given, prompts = squeeze(), prompts_of((150, 300, 33, 260, 190))
    assert_told(model, prompts, generate(engine(given, tensor_parallel_size=2), prompts, TOKENS), given)


def test_refusals(engine, monkeypatch):
    from squeezeattention.errors import BudgetError

    small = BudgetPlan.from_budgets([40] * LAYERS).to_dict()
    with pytest.raises(BudgetError, match="less than the 64 of the sinks' blocks and one more"):
        engine({"plan": small, "per_prompt": True})
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    with pytest.raises(RuntimeError, match="plans per prompt cannot be combined with pipeline parallelism"):
        engine(squeeze(), pipeline_parallel_size=2)  # said by a worker, told by vLLM
