"""Decode steps through torch.compile: the numbers of plain steps, in few graphs, and loud where it cannot be."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import DynamicCache

from squeezeattention import POLICIES, SqueezeCache, squeeze
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
    assert cache.memory().bytes == len(lengths) * sum(cache.plan.budgets) * token


@pytest.mark.parametrize("policy", ["h2o", pytest.param("streaming_llm", marks=pytest.mark.matrix)])
def test_steps_do_not_trace_again(model, policy, graphs):
    """Nor does a second prompt with budgets of the same size; other budgets once, and then no more."""
    rows, generated = story(lengths=(40,))
    counts = []
    for budgets in ([10, 12], [10, 12], [9, 20], [12, 8]):
        cache = SqueezeCache(model, allocator=budgets, policy=policy, compile=True)
        teacher_forced(model, cache, rows, generated)
        counts.append(len(graphs))
    assert counts[0] == counts[1] == 1
    assert counts[3] == counts[2] == 2


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
    rows, generated = story(lengths=(31, 20))
    want = teacher_forced(model, SqueezeCache(model, budget=BUDGET, policy=policy), rows, generated)
    cache = SqueezeCache(model, budget=BUDGET, policy=policy, compile=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        got = teacher_forced(model, cache, rows, generated)
    assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) <= TOLERANCE
    torch._dynamo.reset()


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
    assert all(map(torch.equal, got, want))
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
    assert cache.memory().bytes == cache.memory().full_bytes
    with torch.no_grad():
        for token in range(7, 30):
            step = {"input_ids": torch.tensor([[token]]), "use_cache": True}
            expected, got = (model(**step, past_key_values=each).logits for each in (want, cache))
            torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
    assert cache.lengths() == [68] * 2
    assert len(graphs) == 2
