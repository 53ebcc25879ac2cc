"""A prompt in pieces that are planned and cut one by one: exact against the reference, and bounded in memory."""

import pytest
import torch

from squeezeattention import POLICIES, BudgetPlan, EvictionPolicy, SqueezeCache, squeeze
from squeezeattention.errors import ConfigError, InputError, UnsupportedFeatureError
from squeezeattention.hf.layout import inspect_model
from squeezeattention.signals import SIGNALS
from squeezeattention.testing import (
    FAMILIES,
    NaiveReference,
    left_padded,
    position_ids,
    rules_for,
    teacher_forced,
    tiny_model,
)

LENGTHS = (41, 22, 37)
STEPS, PIECE, BUDGET = 20, 7, 12
TOLERANCE = 1e-4


def story(seed: int = 3) -> tuple[list[list[int]], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 101, (n,), generator=generator).tolist() for n in LENGTHS]
    return rows, torch.randint(3, 101, (len(rows), STEPS), generator=generator)


def in_pieces(model, cache, rows, generated):
    """Logits of each row, and each row's budgets after each piece, the pieces cut by hand."""
    ids, mask = left_padded(rows)
    parts, budgets = [], []

    def forward(tokens, mask):
        positions = position_ids(mask)[:, -tokens.shape[1] :]
        parts.append(model(tokens, attention_mask=mask, position_ids=positions, past_key_values=cache).logits)

    with torch.no_grad():
        with cache.prefilling(list(map(len, rows))):
            for start in range(0, ids.shape[1], PIECE):
                forward(ids[:, start : start + PIECE], mask[:, : start + PIECE])
                budgets.append([plan.budgets for plan in cache.plans])
        for index in range(generated.shape[1]):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            forward(generated[:, index : index + 1], mask)
    logits = torch.cat(parts, dim=1)
    return [logits[index, ids.shape[1] - len(row) :] for index, row in enumerate(rows)], budgets


@pytest.mark.parametrize("policy", ["sliding_window", "streaming_llm", "h2o"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_piece_equals_the_reference(family, policy):
    """Each row alone: its part of a piece is read, then cut to its budgets."""
    model = tiny_model(family, **({"attn_implementation": "eager"} if family == "gemma2" else {}))
    windows = inspect_model(model).windows
    rows, generated = story()
    cache = SqueezeCache(model, budget=BUDGET, policy=policy, prefill="bounded", chunk_size=PIECE)
    ours, budgets = in_pieces(model, cache, rows, generated)
    kv_heads = cache.kept_positions(0).shape[1]
    exact = SqueezeCache(model, budget=BUDGET, policy=policy)
    moved = max(
        (a - b).abs().max().item() for a, b in zip(teacher_forced(model, exact, rows, generated), ours, strict=True)
    )
    assert moved > 100 * TOLERANCE, "reading in pieces changed nothing: the comparison proves nothing"
    for index, row in enumerate(rows):
        reference = NaiveReference(model, policy, windows, kv_heads)
        want, pads = [], max(LENGTHS) - len(row)
        for piece, budget in enumerate(budgets):
            tokens = row[max(0, piece * PIECE - pads) : max(0, (piece + 1) * PIECE - pads)]
            if tokens:
                want.append(reference.read(tokens))
                reference.cut(budget[index])
        want += [reference.step(token)[None] for token in generated[index].tolist()]
        assert (ours[index] - torch.cat(want)).abs().max() <= TOLERANCE
        for layer in range(len(windows)):
            kept = [{p for p in head if p >= 0} for head in cache.kept_positions(layer)[index].tolist()]
            assert kept == reference.kept[layer]


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.mark.parametrize("allocator", rules_for())
@pytest.mark.parametrize("policy", POLICIES.names())
def test_a_long_forward_is_cut_into_pieces_by_itself(model, policy, allocator):
    if allocator not in rules_for(policy):
        pytest.skip("refused: no scores")
    rows, generated = story()
    options = {"budget": 0.3, "policy": policy, "allocator": allocator, "prefill": "bounded", "chunk_size": PIECE}
    by_hand = SqueezeCache(model, **options)
    want, budgets = in_pieces(model, by_hand, rows, generated)
    for row in zip(*budgets, strict=True):
        assert len(set(map(sum, row))) == 1, "pieces share out the same budget"
    cache = SqueezeCache(model, **options)
    got = teacher_forced(model, cache, rows, generated)
    assert all(map(torch.equal, got, want))
    assert cache.plans == by_hand.plans
    for layer in range(len(cache.layers)):
        assert torch.equal(cache.kept_positions(layer), by_hand.kept_positions(layer))


@pytest.mark.parametrize("signal", SIGNALS.names())
def test_every_signal_can_be_read_in_pieces(model, signal):
    rows, generated = story()
    policy = "h2o" if SIGNALS.create(signal).wants_scores else "streaming_llm"
    cache = SqueezeCache(model, budget=BUDGET, policy=policy, signal=signal, prefill="bounded", chunk_size=PIECE)
    teacher_forced(model, cache, rows, generated)
    for plan in cache.plans:
        assert plan.total == BUDGET * 4
        assert plan.signal_values is not None


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("length", [100, 400])
def test_the_peak_does_not_depend_on_the_prompt(model, policy, length):
    ids = torch.randint(3, 101, (2, length), generator=torch.Generator().manual_seed(length))
    cache = SqueezeCache(model, budget=BUDGET, policy=policy, prefill="bounded", chunk_size=PIECE)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    memory = cache.memory()
    token = memory.full_bytes / (2 * length)
    assert memory.full_bytes == pytest.approx(2 * length * token)
    assert memory.peak_bytes <= 2 * (BUDGET + PIECE) * token
    assert memory.bytes == 2 * BUDGET * token


def test_generate_and_later_turns(model):
    rows, _ = story()
    ids, mask = left_padded(rows)
    options = {"budget": BUDGET, "policy": "h2o", "prefill": "bounded", "chunk_size": PIECE}

    def turns(cache):
        text, seen = ids, mask
        for _ in range(2):
            text = model.generate(
                text, attention_mask=seen, past_key_values=cache, max_new_tokens=6, do_sample=False, pad_token_id=0,
                eos_token_id=None,
            )  # fmt: skip
            text = torch.cat([text, ids.flip(0)[:, -23:]], dim=1)
            seen = torch.cat([mask, torch.ones_like(text[:, mask.shape[1] :])], dim=1)
        return text

    cache = SqueezeCache(model, **options)
    got = turns(cache)
    assert cache.get_seq_length() > 60
    assert cache.memory().peak_bytes <= (BUDGET + PIECE) * cache.memory().full_bytes / cache.get_seq_length()
    with squeeze(model, **options):
        first = model.generate(
            ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    assert torch.equal(first, got[:, : first.shape[1]])


def test_the_model_is_as_it_was_when_the_cache_is_gone(model):
    before = dict(vars(model.model))
    ids = torch.tensor([story()[0][0]])
    with torch.no_grad():
        want = model(ids).logits
        cache = SqueezeCache(model, budget=BUDGET, prefill="bounded", chunk_size=PIECE)
        assert torch.equal(model(ids).logits, want)
        cache.detach()
        assert torch.equal(model(ids).logits, want)
    assert set(vars(model.model)) == set(before)


def test_a_forward_that_others_put_in_front_is_called(model):
    """accelerate replaces ``forward`` on the instance; pieces go through that."""
    calls = []
    own = model.model.forward

    def hooked(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    model.model.forward = hooked
    cache = SqueezeCache(model, BUDGET, "h2o", "squeeze", prefill="bounded", chunk_size=PIECE)
    with torch.no_grad():
        model(torch.tensor([[5]]), past_key_values=cache)  # the first forward also probes the residual stream
        cache.reset()
        calls.clear()
        model(torch.tensor([story()[0][0]]), past_key_values=cache)
    assert len(calls) == -(-LENGTHS[0] // PIECE)
    cache.detach()
    assert model.model.forward is hooked


def test_what_cannot_be_put_together_is_refused(model):
    ids = torch.tensor([story()[0][0]])
    cache = SqueezeCache(model, budget=BUDGET, prefill="bounded", chunk_size=PIECE)
    with torch.no_grad():
        with pytest.raises(UnsupportedFeatureError, match="output_hidden_states"):
            model(ids, past_key_values=cache, output_hidden_states=True)
        with pytest.raises(InputError, match="padding"):
            model(ids, attention_mask=torch.zeros_like(ids), past_key_values=cache)
        assert cache.get_seq_length() == 0
        model(ids, past_key_values=cache)
    assert cache.plan.total == 4 * BUDGET


@pytest.mark.parametrize("wrong", [{"prefill": "fast"}, {"chunk_size": 0}, {"chunk_size": 1.5}, {"chunk_size": True}])
def test_mistakes(model, wrong):
    with pytest.raises(ConfigError):
        SqueezeCache(model, **wrong)


FIXED = [10, 30, 8, 12]


def told_where_it_ends(model, cache, rows, generated, total, chunk=None):
    """All logits, and the peak of the prompt, whose end is announced if there is a ``total``."""
    ids, mask = left_padded(rows)
    parts = []

    def forward(tokens, mask):
        positions = position_ids(mask)[:, -tokens.shape[1] :]
        parts.append(model(tokens, attention_mask=mask, position_ids=positions, past_key_values=cache).logits)

    with torch.no_grad():
        with cache.prefilling(total):
            for start in range(0, ids.shape[1], chunk or ids.shape[1]):
                stop = start + (chunk or ids.shape[1])
                forward(ids[:, start:stop], mask[:, :stop])
        peak = cache.memory().peak_bytes
        for index in range(generated.shape[1]):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            forward(generated[:, index : index + 1], mask)
    return torch.cat(parts, dim=1), peak


def asks_again(policy):
    """Whether the prompt is needed whole at its end."""
    known = POLICIES.create(policy)
    return known.replays > 0


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("allocator", ["uniform", "pyramid", FIXED, BudgetPlan.from_budgets(FIXED)], ids=str)
@pytest.mark.parametrize("chunk", [None, 11])
def test_known_budgets_are_cut_while_the_prompt_is_read(model, policy, allocator, chunk):
    """With an exact prefill too: bit for bit what a cut at the end leaves, and a lower peak."""
    rows, generated = story()

    def run(total):
        fixed = not isinstance(allocator, str)
        cache = SqueezeCache(model, budget=None if fixed else 15, policy=policy, allocator=allocator)
        return *told_where_it_ends(model, cache, rows, generated, total, chunk), cache

    want, highest, untold = run(None)
    got, peak, told = run(max(LENGTHS))
    assert torch.equal(got, want)
    assert told.plans == untold.plans
    for layer in range(4):
        assert torch.equal(told.kept_positions(layer), untold.kept_positions(layer))
    full = 4 * max(LENGTHS)
    assert highest == pytest.approx(told.memory().full_bytes * full / (full + 4 * STEPS), rel=1e-6)
    if asks_again(policy):
        assert peak == highest
    elif chunk is None:
        held = sum(plan.total for plan in told.plans) / len(rows)
        assert peak <= highest * (held + 2 * max(LENGTHS)) / full
    else:
        assert peak <= highest


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("handle", [True, False])
@pytest.mark.parametrize("chunk", [None, 13])
def test_generate_tells_where_the_prompt_ends(model, masked, handle, chunk):
    """One unpadded prompt, with a mask or without: known budgets are cut while it is read, in a later turn too."""
    ids = torch.arange(3, 55)[None]
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "prefill_chunk_size": chunk}
    settings = {"budget": 8, "policy": "streaming_llm", "allocator": "uniform"}

    def peak(text, cache=None):
        given = {"attention_mask": torch.ones_like(text)} if masked else {}
        if cache is not None:
            given["past_key_values"] = cache
        return model.generate(text, **given, **options)

    token = SqueezeCache(model, **settings)
    peak(ids, token)
    per_token = token.memory().bytes / 8  # of all four layers
    most = (8 * 4 + 2 * ids.shape[1]) / 4 * per_token  # the budgets, and two layers that hold the prompt
    if handle:
        with squeeze(model, **settings) as squeezed:
            peak(ids)
            memory = squeezed.cache.memory()
    else:
        cache = SqueezeCache(model, **settings)
        text = peak(ids, cache)
        memory = cache.memory()
    assert per_token * ids.shape[1] > memory.peak_bytes
    if chunk is None:
        assert memory.peak_bytes <= most
        if not handle:
            peak(torch.cat([text, ids[:, :40]], dim=1), cache)
            assert cache.memory().peak_bytes <= most


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_no_plan_could_keep_goes_while_the_prompt_is_read(family, policy):
    """A signal decides, but all but the others' floors is the most that a layer could get: the same bits, less peak."""
    model = tiny_model(family, **({"attn_implementation": "eager"} if family == "gemma2" else {}))
    rows, generated = story()
    for allocator, chunk in (("squeeze", None), ("zigzag", 11)):
        found = []
        for total in (None, max(LENGTHS)):
            cache = SqueezeCache(model, budget=8, policy=policy, allocator=allocator)
            logits, peak = told_where_it_ends(model, cache, rows, generated, total, chunk)
            kept = [cache.kept_positions(layer) for layer in range(4)]
            found.append((logits, kept, cache.plans, peak))
        (want, kept, plan, highest), (got, *told, peak) = found
        assert torch.equal(got, want)
        assert all(map(torch.equal, kept, told[0]))
        assert told[1] == plan
        assert peak == highest if asks_again(policy) else peak < highest


@pytest.mark.parametrize("allocator", ["squeeze", "zigzag", "random"])
def test_layers_that_may_keep_the_prompt_are_cut_at_the_end(model, allocator):
    rows, _ = story()
    cache = SqueezeCache(model, budget=15, allocator=allocator)
    told_where_it_ends(model, cache, rows, torch.empty(3, 0), max(LENGTHS))
    memory = cache.memory()
    assert memory.peak_bytes == memory.full_bytes


class Newest(EvictionPolicy):
    """Does not say that it is nested."""

    name = "newest"

    def priority(self, tokens, budget):
        return tokens.positions


def test_a_policy_that_is_not_known_to_be_nested_is_cut_once(model):
    rows, _ = story()
    for policy, once in ((Newest(), True), ("sliding_window", False)):
        cache = SqueezeCache(model, budget=8, policy=policy, allocator="squeeze")
        told_where_it_ends(model, cache, rows, torch.empty(3, 0), max(LENGTHS))
        assert (cache.memory().peak_bytes == cache.memory().full_bytes) is once


def test_a_prompt_that_goes_on_after_its_announced_end(model):
    ids = torch.tensor([story()[0][0]])
    cache = SqueezeCache(model, 15, "h2o", "uniform")
    with torch.no_grad():
        with cache.prefilling(30):
            model(ids[:, :30], past_key_values=cache)
            with pytest.raises(InputError, match="30 tokens was announced"):
                model(ids[:, 30:], past_key_values=cache)
        assert cache.lengths() == [15] * 4  # what was announced is there
        model(ids[:, 30:], past_key_values=cache)  # a new turn
    assert cache.get_seq_length() == LENGTHS[0]
