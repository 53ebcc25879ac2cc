"""Signals from a prompt's last queries: against the model's own attention weights, in chunks, with padding."""

import math

import pytest
import torch

from squeezeattention import SqueezeCache
from squeezeattention.allocators import ALLOCATORS
from squeezeattention.errors import CacheStateError, ConfigError
from squeezeattention.signals import SIGNALS, LastQueries, Preference, StreamingMass, TopTokens
from squeezeattention.testing import left_padded, position_ids, teacher_forced, tiny_model

LAST = [name for name in SIGNALS if isinstance(SIGNALS.create(name), LastQueries)]
ROWS = [list(range(3, 3 + n)) for n in (97, 70)]
WITH_SHORT = [*ROWS, [5, 6, 7, 8, 9]]  # shorter than the windows below
BUDGET = 48
FAMILIES = ["llama", "gemma2", "gpt-oss", "qwen3"]


def measured(model, signal, rows=ROWS, chunk=None):
    """Values of the first row's layers, then the second's, ..."""
    cache = SqueezeCache(model, budget=BUDGET, signal=signal, policy="streaming_llm")
    teacher_forced(model, cache, rows, chunk=chunk)
    return tuple(value for plan in cache.plans for value in plan.signal_values)


def rows_of(family, rows, window):
    """Of each layer and row, as the stock eager implementation gives them: the attention of the last ``window``
    queries ``[Hq, R, T]`` without padding, and how many tokens lie before them."""
    ids, mask = left_padded(rows)
    eager = tiny_model(family)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        out = eager(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), output_attentions=True)
    width = ids.shape[1]
    return [
        [
            (weights[index, :, width - len(row) :, width - len(row) :][:, -window:], max(0, len(row) - window))
            for index, row in enumerate(rows)
        ]
        for weights in out.attentions
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_streaming_mass_by_hand(family):
    window, sinks, recent = 9, 2, 12
    want = []
    for row in zip(*rows_of(family, WITH_SHORT, window), strict=True):
        for weights, before in row:
            far = 0.0
            for query in range(weights.shape[1]):
                position = before + query
                far += weights[:, query, sinks : max(sinks, position - recent + 1)].sum(-1).mean().item()
            want.append(1 - far / weights.shape[1])
    got = measured(tiny_model(family), StreamingMass(window, sinks, recent), WITH_SHORT)
    assert got == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("taus", [(1.0, 1.0), (1.6, 0.7)])
def test_preference_by_hand(family, taus):
    window = 9
    want = []
    for row in zip(*rows_of(family, WITH_SHORT, window), strict=True):
        preferences = []
        for weights, before in row:
            old = weights[..., :before].double()
            entropy = -(old * old.clamp(min=1e-300).log()).sum(-1).mean().item() if before else 0.0
            variance = old.var(dim=1).sum(-1).mean().item() if before else 0.0
            preferences.append(entropy ** (1 / taus[0]) * variance ** (1 / taus[1]))
        want += [1 - preference / max(max(preferences), 1e-30) for preference in preferences]
    assert measured(tiny_model(family), Preference(window, *taus), WITH_SHORT) == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window", [9, 30])
def test_top_tokens_by_hand(family, window):
    pool, layers = 3, rows_of(family, WITH_SHORT, window)
    heads = tiny_model(family).config.num_key_value_heads
    want = []
    for index in range(len(WITH_SHORT)):
        shares = [0.0] * len(layers)
        ranking = []
        for layer, rows in enumerate(layers):
            weights, before = rows[index]
            for head, group in enumerate(weights.chunk(heads)):
                received = [0.0, *group.mean(0).sum(0)[:before].tolist(), 0.0]
                ranking += [(sum(received[i : i + pool]) / pool, layer, head, i) for i in range(before)]
        best = sorted(ranking, reverse=True)[: len(layers) * heads * (BUDGET - min(window, BUDGET // 4))]
        for score, layer, *_ in best:
            if score > 0:
                shares[layer] += 1 / heads / before
        want += [1 - share for share in shares]
    got = measured(tiny_model(family), TopTokens(window, pool), WITH_SHORT)
    assert got == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("name", LAST)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss", "mistral-window", "deepseek-v3"])
def test_chunks_give_what_the_whole_prompt_gives(name, family):
    model = tiny_model(family)
    whole = measured(model, name)
    assert all(math.isfinite(value) and -1e-5 <= value <= 1 + 1e-5 for value in whole)
    for chunk in (1, 5, 41, 90):
        assert measured(model, name, chunk=chunk) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("name", LAST)
@pytest.mark.parametrize("length", [65, 70, 97])
def test_pieces_of_a_bounded_prefill_give_it_too(name, length):
    """Where nothing is evicted; the last piece of 32 tokens may be a single one, far from the signal's window."""
    model, ids = tiny_model("llama"), torch.tensor([ROWS[0][:length]])
    found = []
    for prefill in ("exact", "bounded"):
        cache = SqueezeCache(
            model, budget=200, signal=name, allocator="cake", policy="h2o", prefill=prefill, chunk_size=32
        )
        with torch.no_grad():
            model(ids, past_key_values=cache)
            first = cache.plan.signal_values
            model(ids[:, :40], past_key_values=cache)
        found.append((*first, *cache.plan.signal_values))
    assert found[1] == pytest.approx(found[0], abs=1e-5)


@pytest.mark.parametrize("name", LAST)
@pytest.mark.parametrize("family", ["llama", "gpt-oss"])
def test_a_padded_row_gives_what_it_gives_alone(name, family):
    model = tiny_model(family)
    for length in (12, 70):
        row = ROWS[0][:length]
        cache = SqueezeCache(model, budget=BUDGET, signal=name, policy="streaming_llm")
        ids, mask = (torch.tensor([[value] * 30 + list(tokens)]) for value, tokens in ((0, row), (0, [1] * length)))
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), past_key_values=cache)
        assert cache.plan.signal_values == pytest.approx(measured(model, name, [row]), abs=1e-5)


@pytest.mark.parametrize("name", LAST)
def test_half_precision(name):
    whole = measured(tiny_model("llama"), name)
    assert measured(tiny_model("llama", dtype=torch.bfloat16), name) == pytest.approx(whole, abs=0.1)


@pytest.mark.parametrize("name", LAST)
def test_a_prompt_within_the_window_tells_no_layer_from_another(name):
    assert measured(tiny_model("llama"), name, rows=[[5, 6, 7]]) == (1.0,) * 4


@pytest.mark.parametrize("name", LAST)
def test_a_later_turn_is_judged_by_its_own_queries(name):
    """Where nothing was evicted the two turns are one text; and between them nothing is held."""
    model = tiny_model("llama")
    text = torch.tensor([ROWS[0]])
    cache = SqueezeCache(model, budget=1.0, signal=name, policy="streaming_llm")
    with torch.no_grad():
        for part in (text[:, :50], text[:, 50:]):
            model(input_ids=part, past_key_values=cache)
            assert cache.plan.signal == name
            assert all(held is None for held in (*cache.signal._tails, *cache.signal._measured))
    whole = SqueezeCache(model, budget=1.0, signal=name, policy="streaming_llm")
    teacher_forced(model, whole, ROWS[:1])
    assert cache.plan.signal_values == pytest.approx(whole.plan.signal_values, abs=1e-5)


@pytest.mark.parametrize("policy", ["sliding_window", "streaming_llm", "h2o"])
@pytest.mark.parametrize("name", LAST)
def test_a_later_turn_over_what_was_kept(name, policy):
    model = tiny_model("gemma2")
    values = []
    for chunk in (25, 4):
        cache = SqueezeCache(model, budget=20, signal=name, policy=policy)
        teacher_forced(model, cache, [ROWS[0][:60]])
        assert cache.plan is not None
        with torch.no_grad(), cache.prefilling():
            for part in torch.tensor([ROWS[1][:25]]).split(chunk, dim=1):
                model(input_ids=part, past_key_values=cache)
        values.append(cache.plan.signal_values)
    assert values[1] == pytest.approx(values[0], abs=1e-5)


@pytest.mark.parametrize("name", LAST)
def test_rows_picked_in_the_middle_of_a_prompt(name):
    model = tiny_model("llama")
    rows = torch.tensor([ROWS[0][:60], [*ROWS[0][60:2:-1], 4, 9]])
    cache = SqueezeCache(model, budget=20, signal=name, policy="streaming_llm")
    with torch.no_grad(), cache.prefilling():
        model(input_ids=rows[:, :50], past_key_values=cache)
        cache.batch_select_indices(torch.tensor([1]))
        model(input_ids=rows[1:, 50:], past_key_values=cache)
    alone = SqueezeCache(model, budget=20, signal=name, policy="streaming_llm")
    teacher_forced(model, alone, [rows[1].tolist()])
    assert cache.plan.signal_values == pytest.approx(alone.plan.signal_values, abs=1e-5)


def test_streaming_mass_of_known_attention():
    """Keys of equal length make attention uniform: the newest 64 and 4 sinks of n tokens hold 68 / n."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    want = sum(68 / n for n in range(66, 98) if n > 68) + 3  # all of it for 66, 67 and 68 tokens
    assert measured(model, "streaming_mass", ROWS[:1]) == pytest.approx([want / 32] * 4, abs=1e-5)


def test_preference_of_known_numbers():
    pairs = [torch.tensor(pair)[:, None] for pair in ((2.0, 9.0), (1.0, 4.0), (3.0, 0.0))]
    assert Preference().combine(pairs)[0] == pytest.approx([0.0, 1 - 4 / 18, 1.0])
    assert Preference(tau1=0.5, tau2=2.0).combine(pairs)[0] == pytest.approx([0.0, 1 - 2 / 12, 1.0])
    assert Preference().combine([torch.zeros(2, 2)] * 2) == [[1.0, 1.0]] * 2


def test_top_tokens_of_known_scores():
    """Two layers of one head, three tokens before the window: the best four are three and one."""
    signal = TopTokens()
    scores = [torch.tensor([[row]]) for row in ([0.5, 0.4, 0.25, -1.0], [0.3, 0.05, 0.2, -1.0])]
    signal.start(2)
    signal.see_budget([2])
    assert signal.combine(scores)[0] == pytest.approx([0.0, 2 / 3])
    signal.see_budget([100])
    assert signal.combine(scores)[0] == pytest.approx([0.0, 0.0])
    signal.start(2)  # no word of the budget: a fifth of eight
    assert signal.combine(scores)[0] == pytest.approx([2 / 3, 1.0])


def test_the_budget_decides_how_many_are_ranked():
    model = tiny_model("llama")
    found = []
    for budget in (8, "10KiB", 40):
        cache = SqueezeCache(model, budget=budget, signal="top_tokens", policy="streaming_llm")
        teacher_forced(model, cache, ROWS)
        found.append(sum(1 - value for plan in cache.plans for value in plan.signal_values))
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("name", ["cake", "zigzag", "lazy", "dynamickv"])
def test_allocators_of_other_papers_bring_their_signal(name):
    model = tiny_model("llama")
    cache = SqueezeCache(model, budget=30, allocator=name)
    teacher_forced(model, cache, ROWS)
    for plan in cache.plans:
        assert plan.signal == ALLOCATORS.create(name).signal
        assert len(set(plan.budgets)) > 1
        assert plan.total == 4 * 30


def test_bad_settings_and_values_before_a_prompt():
    for window in (0, 1.5, True):
        with pytest.raises(ConfigError, match="window"):
            StreamingMass(window)
    with pytest.raises(ConfigError, match="recent"):
        StreamingMass(recent=0)
    for tau in (0, math.inf, True, "1"):
        with pytest.raises(ConfigError, match="tau2"):
            Preference(tau2=tau)
    for pool in (0, 4, 1.5):
        with pytest.raises(ConfigError, match="pool"):
            TopTokens(pool=pool)
    signal = Preference()
    signal.start(2)
    with pytest.raises(CacheStateError, match="no attention"):
        signal.values()
