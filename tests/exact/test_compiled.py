"""Decode steps through torch.compile: the numbers of plain steps, in few graphs, and loud where it cannot be."""

import copy
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from transformers import DynamicCache

from squeezeattention import POLICIES, SqueezeCache, squeeze
from squeezeattention.cache.blocks import BLOCK, bucket
from squeezeattention.errors import CompileError, CompileWarning, ConfigError, UnsupportedFeatureError
from squeezeattention.hf import compat, compiled
from squeezeattention.hf import rows as few
from squeezeattention.testing import FAMILIES, left_padded, teacher_forced, tiny_model

try:
    compat.check_compiles()
except UnsupportedFeatureError as error:
    pytest.skip(str(error), allow_module_level=True)

LENGTHS = (41, 22, 37)
STEPS, BUDGET = 24, 12
TOLERANCE = 1e-4


def story(seed: int = 3, lengths=LENGTHS) -> tuple[list[list[int]], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 101, (n,), generator=generator).tolist() for n in lengths]
    return rows, torch.randint(3, 101, (len(rows), STEPS), generator=generator)


def assert_same_tokens(one, other):
    for layer in range(len(one.layers)):
        assert torch.equal(one.kept_positions(layer), other.kept_positions(layer))


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_decodes_in_graphs(family, policy, graphs):
    model = tiny_model(family, **({"attn_implementation": "eager"} if family == "gemma2" else {}))
    rows, generated = story()
    if family == "deepseek-v3" and policy in ("criticalkv", "defensivekv", "expected_attention"):
        pytest.skip("refused: see test_heads.py")
    plain = SqueezeCache(model, budget=BUDGET, policy=policy)
    want = teacher_forced(model, plain, rows, generated)
    cache = SqueezeCache(model, budget=BUDGET, policy=policy, compile=True)
    got = teacher_forced(model, cache, rows, generated)
    assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) <= TOLERANCE
    assert_same_tokens(cache, plain)
    assert 1 <= len(graphs) <= 2


@pytest.fixture
def model():
    return tiny_model("llama", num_hidden_layers=2)


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize(
    "lengths", [(5, 3), *(pytest.param(n, marks=pytest.mark.matrix) for n in ((9,), (30,)))], ids=str
)
def test_layers_that_fill_up_while_decoding(model, policy, lengths, graphs):
    """Budgets above and below the prompt: empty columns first, then full ones."""
    rows, generated = story(lengths=lengths)
    budgets = [8, 90]
    plain = SqueezeCache(model, allocator=budgets, policy=policy)
    want = teacher_forced(model, plain, rows, generated)
    cache = SqueezeCache(model, allocator=budgets, policy=policy, compile=True)
    got = teacher_forced(model, cache, rows, generated)
    assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) <= TOLERANCE
    assert_same_tokens(cache, plain)
    assert cache.lengths() == plain.lengths()
    token = cache.memory().full_bytes // (len(lengths) * len(budgets) * (max(lengths) + STEPS))
    exact, spare = len(lengths) * sum(cache.plan.budgets) * token, len(lengths) * len(budgets) * BLOCK * token
    assert exact <= cache.memory().bytes < exact + spare


#: Budgets of two layers, by layer and by KV head; some of which the prompt does not fill.
PLANS = ([10, 12], [9, 20], [70, 8], [[8, 14], [30, 40]], [[40, 40], [33, 8]], [[90, 9], [64, 32]])


@pytest.mark.parametrize("policy", ["h2o", "streaming_llm", "echo"])
@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_other_budgets_are_not_traced_again(family, policy, graphs):
    """What a plan is, layers' or heads', is data for the graph; a second prompt is, too."""
    model = tiny_model(family, num_hidden_layers=2)
    for number, plan in enumerate(PLANS):
        rows, generated = story(seed=number, lengths=(40 - number,))
        plain = SqueezeCache(model, allocator=plan, policy=policy)
        want = teacher_forced(model, plain, rows, generated)
        cache = SqueezeCache(model, allocator=plan, policy=policy, compile="strict")
        got = teacher_forced(model, cache, rows, generated)
        assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) <= TOLERANCE
        assert_same_tokens(cache, plain)
        assert len(graphs) == 1


def test_plans_that_the_prompts_make_are_not_traced_again(model, graphs):
    """Three prompts under the defaults, counted by the compiler as well."""
    counts, plans = [], set()
    for number in range(3):
        rows, generated = story(seed=number, lengths=(60, 44))
        cache = SqueezeCache(model, budget=16, compile="strict")
        teacher_forced(model, cache, rows, generated)
        counts.append((len(graphs), torch._dynamo.utils.counters["stats"]["unique_graphs"]))
        plans.add(str(cache.plans[0].head_budgets))
    assert len(plans) == 3
    assert len(set(counts)) == 1
    assert counts[0][0] == 1


@pytest.mark.parametrize("policy", ["h2o", "streaming_llm"])
@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_looking_between_compiled_steps_changes_nothing(family, policy, graphs):
    """Asking for positions leaves the blocks, and the next step makes them anew; plain steps go on from there."""
    model = tiny_model(family, num_hidden_layers=2)
    rows, generated = story(lengths=(40, 33))
    for plan in ([10, 90], [[8, 14], [30, 90]]):
        plain = SqueezeCache(model, allocator=plan, policy=policy)
        want = teacher_forced(model, plain, rows, generated)
        cache = SqueezeCache(model, allocator=plan, policy=policy, compile="strict")
        seen = []

        def look(cache=cache, seen=seen):
            seen.append(cache.memory().bytes)
            if len(seen) % 5 == 0:
                cache.kept_positions(0)
            if len(seen) == STEPS - 6:
                cache.compile = False

        got = teacher_forced(model, cache, rows, generated, after_step=look)
        assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) <= TOLERANCE
        assert_same_tokens(cache, plain)


def test_blocks_are_rounded_to_few_numbers():
    assert [bucket(n) for n in (1, 7, 9, 16, 17, 18, 100, 1000)] == [1, 7, 9, 16, 18, 18, 104, 1024]
    assert all(n <= bucket(n) <= n + n / 8 for n in range(8, 5000))
    assert len({bucket(n) for n in range(1024, 2048)}) == 9


@pytest.mark.matrix
@pytest.mark.parametrize("policy", ["h2o", "streaming_llm"])
def test_generate_turns_and_beams(model, policy, graphs):
    rows, _ = story()
    ids, mask = left_padded(rows)

    def told(compile, **how):
        cache = SqueezeCache(model, budget=BUDGET, policy=policy, compile=compile)
        text, seen = ids, mask
        for _ in range(2):
            text = model.generate(
                text, attention_mask=seen, past_key_values=cache, max_new_tokens=8, do_sample=False, pad_token_id=0,
                eos_token_id=None, **how,
            )  # fmt: skip
            if how:
                return text
            text = torch.cat([text, ids.flip(0)[:, -9:]], dim=1)
            seen = torch.cat([mask, torch.ones_like(text[:, mask.shape[1] :])], dim=1)
        return text

    assert torch.equal(told(True), told(False))
    assert torch.equal(told(True, num_beams=3), told(False, num_beams=3))
    with squeeze(model, budget=BUDGET, policy=policy, compile=True):
        text = model.generate(
            ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    assert torch.equal(text, told(False)[:, : text.shape[1]])


@pytest.mark.parametrize(
    "policy", ["h2o", *(pytest.param(name, marks=pytest.mark.matrix) for name in ("sliding_window", "streaming_llm"))]
)
def test_the_real_compiler(model, policy):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    counts = set()
    for plan in PLANS[1:4]:
        rows, generated = story(lengths=(31, 20))
        want = teacher_forced(model, SqueezeCache(model, allocator=plan, policy=policy), rows, generated)
        cache = SqueezeCache(model, allocator=plan, policy=policy, compile="strict")
        got = teacher_forced(model, cache, rows, generated)
        assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) <= TOLERANCE
        counts.add(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert len(counts) == 1  # what the compiler assumes of sizes holds for other plans, too


def test_a_compiled_step_copies_no_keys():
    """Keys and values are written in place: the compiled code makes no room for as many. (Torch 2.11 did, where they
    were written through a view.)"""
    width = 64
    model = tiny_model("llama", num_hidden_layers=1, head_dim=width)
    cache = SqueezeCache(model, allocator=[[200, 100]], policy="h2o", compile="strict")
    ids = torch.arange(330)[None] % 90 + 3
    torch._dynamo.reset()
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        model(ids[:, :320], past_key_values=cache, use_cache=True)
        step = {"position_ids": torch.tensor([[320]]), "past_key_values": cache, "use_cache": True}
        _, code = run_and_get_code(lambda: model(ids[:, 320:321], **step))
    torch._dynamo.reset()
    shapes = re.findall(r"empty_strided_cpu\(\(([^()]*)\)", "".join(code))
    assert f"1, 4, 1, {width}" in shapes, f"queries are not found among {shapes}"
    slots = re.compile(rf"({BLOCK}\*)?s\d+, ({BLOCK}, )?{width}")
    assert not [shape for shape in shapes if slots.fullmatch(shape)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_few_rows_times_a_matrix(rows, dtype, bias):
    generator = torch.Generator().manual_seed(rows)
    x, weight, shift = (torch.randn(size, generator=generator).to(dtype) for size in ((rows, 1, 67), (45, 67), (45,)))
    want = torch.nn.functional.linear(x.double(), weight.double(), shift.double() if bias else None)
    got = few.sum_of_rows(x, weight, shift if bias else None)
    assert got.dtype == dtype
    assert few.is_few_rows(x, weight)
    assert not few.is_few_rows(x[:1].expand(4, 1, 67), weight)
    assert not few.is_few_rows(x, weight.t().contiguous().t())
    assert (got - want).abs().max() <= (1e-4 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize(("lengths", "replaced"), [((31,), True), ((31, 20, 4, 9), False)])
def test_products_of_few_rows_are_written_as_sums(model, lengths, replaced, monkeypatch):
    """Seven matrices a layer in the graph, and the head beside it; larger batches stay with the library."""
    seen, heads = [], []
    product = compiled._few_rows

    def inductor(graph, example_inputs):
        seen.append([node.target for node in graph.graph.nodes])
        return graph.forward

    def head(*args):
        heads.append(1)
        return product(*args)

    torch._dynamo.reset()
    monkeypatch.setattr(few, "lookup_backend", lambda name: inductor)
    monkeypatch.setattr(compiled, "_few_rows", head)
    compiled._compiler.cache_clear()
    try:
        rows, generated = story(lengths=lengths)
        plain, cache = SqueezeCache(model, budget=BUDGET), SqueezeCache(model, budget=BUDGET, compile=True)
        want = teacher_forced(model, plain, rows, generated)
        assert not heads  # another cache's steps are left alone
        got = teacher_forced(model, cache, rows, generated)
    finally:
        torch._dynamo.reset()
        compiled._compiler.cache_clear()
    assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) <= TOLERANCE
    assert [targets.count(few.sum_of_rows) for targets in seen] == [14 if replaced else 0] * len(seen)
    assert [targets.count(torch.nn.functional.linear) for targets in seen] == [0 if replaced else 14] * len(seen)
    assert len(heads) == (STEPS if replaced else 0)
    cache.detach()
    plain.detach()
    assert "forward" not in vars(model.lm_head)


def test_what_cannot_be_traced_decodes_as_before_and_says_why(model, graphs):
    rows, generated = story()
    mlp = model.model.layers[1].mlp

    def untraceable(module, args, output):
        torch._dynamo.graph_break()
        return output

    handle = mlp.register_forward_hook(untraceable)
    want = teacher_forced(model, SqueezeCache(model, budget=BUDGET), rows, generated)
    cache = SqueezeCache(model, budget=BUDGET, compile=True)
    with pytest.warns(CompileWarning, match="LlamaModel decodes without torch.compile: ") as warned:
        got = teacher_forced(model, cache, rows, generated)
    assert len(warned) == 1
    assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) <= 1e-5
    assert not any(layer.is_settled for layer in cache.layers)  # further steps are plain ones
    reason = str(warned[0].message)
    assert "graph_break" in reason
    assert len(reason.splitlines()) > 1  # all that the compiler has to say
    assert not graphs
    with pytest.warns(CompileWarning, match="LlamaModel decodes without torch.compile: ") as warned:
        teacher_forced(model, SqueezeCache(model, budget=BUDGET, compile=True), rows, generated)
    assert len(warned) == 1  # each cache says so
    with pytest.raises(CompileError, match=r"LlamaModel cannot decode through torch\.compile.*strict.*: "):
        teacher_forced(model, SqueezeCache(model, budget=BUDGET, compile="strict"), rows, generated)
    handle.remove()
    for compile in (True, "strict"):  # what one cache could not do another one may
        teacher_forced(model, SqueezeCache(model, budget=BUDGET, compile=compile), rows, generated)
        assert len(graphs) >= 1


def test_a_forward_that_others_put_in_front_is_not_passed_by(model, graphs):
    own, calls = model.model.forward, []

    def hooked(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    model.model.forward = hooked
    rows, generated = story()
    cache = SqueezeCache(model, budget=BUDGET, compile=True)
    with pytest.warns(CompileWarning, match="replaced its forward"):
        teacher_forced(model, cache, rows, generated)
    assert len(calls) >= 1 + STEPS
    with pytest.warns(CompileWarning, match="replaced its forward"):
        teacher_forced(model, SqueezeCache(model, budget=BUDGET, compile=True), rows, generated)
    with pytest.raises(CompileError, match="replaced its forward"):
        teacher_forced(model, SqueezeCache(model, budget=BUDGET, compile="strict"), rows, generated)
    cache.detach()
    assert model.model.forward is hooked


def test_two_threads_compile_steps_of_one_model(model, graphs):
    """Each sees its own step, also while the other one is traced; the config has its name again."""
    prompts = [list(range(3, 40)), list(range(50, 81))]
    generated = story(lengths=(9,))[1]
    want = [teacher_forced(model, SqueezeCache(model, BUDGET, "h2o"), [prompt], generated)[0] for prompt in prompts]
    caches = [SqueezeCache(model, BUDGET, "h2o", compile="strict") for _ in prompts]

    def run(which):
        return teacher_forced(model, caches[which], [prompts[which]], generated)[0]

    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(run, range(2)))
    assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) <= TOLERANCE
    copied = copy.deepcopy(model.config)
    assert copied._attn_implementation == "sdpa"


def test_mistakes(model):
    with pytest.raises(ConfigError, match='True, False or "strict"'):
        SqueezeCache(model, compile="yes")
    with pytest.raises(ConfigError, match="sinks"):
        SqueezeCache(model, policy="streaming_llm", positions="cache", compile=True)


@pytest.mark.parametrize("policy", ["h2o", "streaming_llm"])
@pytest.mark.parametrize("budget", [90, 1.0])
def test_a_text_that_outlives_what_was_foreseen(model, policy, budget, graphs):
    """Columns for the answer that ``generate`` may give, and more of them when the text goes on."""
    ids = torch.arange(3, 43)[None]
    want, cache = DynamicCache(config=model.config), SqueezeCache(model, budget, policy, compile=True)
    text = {}
    for each in (want, cache):
        text[each] = model.generate(
            ids, past_key_values=each, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0
        )
    assert text[cache].tolist() == text[want].tolist()
    spare = 2 * 2 * BLOCK * cache.memory().full_bytes // (2 * 2 * cache.get_seq_length())
    assert cache.memory().full_bytes <= cache.memory().bytes < cache.memory().full_bytes + spare
    with torch.no_grad():
        for token in range(7, 30):
            step = {"input_ids": torch.tensor([[token]]), "use_cache": True}
            expected, got = (model(**step, past_key_values=each).logits for each in (want, cache))
            torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
    assert cache.lengths() == [68] * 2
    assert len(graphs) == 2  # ``generate`` passes positions, these steps do not; that more blocks are needed costs none
