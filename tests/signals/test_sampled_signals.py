"""Signals from sampled queries: against the model's own attention weights, in chunks, with padding."""

import copy
import math

import pytest
import torch

from squeezeattention import SqueezeCache
from squeezeattention.errors import CacheStateError, ConfigError
from squeezeattention.signals import SIGNALS, SampledAttention, Span
from squeezeattention.signals.sampled import is_sampled, layer_mean
from squeezeattention.testing import left_padded, position_ids, teacher_forced, tiny_model

SAMPLED = [name for name in SIGNALS if isinstance(SIGNALS.create(name), SampledAttention)]
ROWS = [list(range(3, 3 + n)) for n in (97, 70)]


class FarMass(SampledAttention):
    """A signal of somebody else: attention on what is neither among the first tokens nor among the newest."""

    name = "far_mass"

    def __init__(self, sinks, window, need=lambda mass: layer_mean(mass.sum(-1))):
        self.sinks, self.window, self.of = sinks, window, need

    def need(self, rows):
        far = (rows.distance >= self.window) & (rows.key_positions >= self.sinks)[..., None, :]
        seen = rows.visible.clamp(min=1)
        mass = rows.probabilities * rows.per_query_head(far)
        torch.testing.assert_close(mass.sum(-1), rows.mass(far))
        return self.of(mass), (seen - self.sinks - self.window).clamp(min=0) / seen


def measured(model, signal, rows=ROWS, chunk=None):
    """Values of the first row's layers, then the second's, ..."""
    cache = SqueezeCache(model, budget=0.5, signal=signal, policy="streaming_llm")
    teacher_forced(model, cache, rows, chunk=chunk)
    return tuple(value for plan in cache.plans for value in plan.signal_values)


def weights_of(family, rows):
    """Each layer's attention weights ``[B, Hq, T, T]`` as the stock eager implementation gives them."""
    ids, mask = left_padded(rows)
    eager = tiny_model(family)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        out = eager(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), output_attentions=True)
    return out.attentions, position_ids(mask).masked_fill(mask == 0, -1)


@pytest.mark.parametrize(
    ("signal", "need"),
    [
        (FarMass(2, 8), lambda far: far.sum(-1).mean()),  # far: [Hq, keys]
        (FarMass(2, 8, lambda mass: mass.norm(dim=-1).amax(dim=1)), lambda far: far.square().sum(-1).sqrt().max()),
    ],
    ids=["mean", "sharpest head"],
)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss", "qwen3"])
def test_what_far_tokens_get_equals_the_models_own_attention(family, signal, need):
    sinks, window = signal.sinks, signal.window
    layers, positions = weights_of(family, ROWS)
    want = []
    for row in range(len(ROWS)):
        for weights in layers:
            total = weight_sum = 0.0
            for column, here in enumerate(positions[row].tolist()):
                if here < 0 or (here + 1) % 32:
                    continue
                far = [c for c, p in enumerate(positions[row].tolist()) if sinks <= p <= here - window]
                weight = max(0, here + 1 - sinks - window) / (here + 1)
                total += weight * need(weights[row, :, column, far]).item()
                weight_sum += weight
            want.append(1 - total / weight_sum)
    assert measured(tiny_model(family), signal) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss", "mistral-window", "deepseek-v3"])
def test_chunks_give_what_the_whole_prompt_gives(name, family):
    model = tiny_model(family)
    whole = measured(model, name)
    assert all(math.isfinite(value) and -1e-5 <= value <= 1 + 1e-5 for value in whole)
    for chunk in (5, 41):
        assert measured(model, name, chunk=chunk) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_second_prompt_is_measured_anew(name):
    model = tiny_model("llama")
    cache = SqueezeCache(model, budget=0.5, signal=name, policy="streaming_llm")
    teacher_forced(model, cache, [list(range(5, 60))])
    cache.reset()
    teacher_forced(model, cache, ROWS)
    assert tuple(value for plan in cache.plans for value in plan.signal_values) == measured(model, name)


@pytest.mark.parametrize("name", [name for name in SIGNALS if not SIGNALS.create(name).wants_scores])
@pytest.mark.parametrize("family", ["llama", "gpt-oss"])  # gpt-oss: its attention's sinks are parameters
def test_what_is_seen_with_gradients_on_holds_no_graph(name, family):
    model = tiny_model(family)
    cache = SqueezeCache(model, budget=0.5, signal=name, policy="streaming_llm")
    with torch.enable_grad():
        model(input_ids=torch.tensor([ROWS[0]]), past_key_values=cache)
    assert copy.deepcopy(cache).plan.signal_values == pytest.approx(measured(model, name, [ROWS[0]]), abs=1e-5)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_prompt_too_short_to_be_sampled_needs_nothing(name):
    assert measured(tiny_model("llama"), name, rows=[[5, 6, 7]]) == (1.0,) * 4


def test_far_mass_and_span_of_known_attention():
    """Keys of equal length make attention uniform: every visible token has the same mass."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    rows = [list(range(3, 99))]
    needs = [1 - value for value in measured(model, Span(0.5), rows)]
    assert needs == pytest.approx([0.5] * 4, abs=0.02)
    seen = torch.arange(32, 97, 32).double()
    far = (seen - 4 - 8).clamp(min=0) / seen
    want = float((far * far).sum() / far.sum())
    assert [1 - v for v in measured(model, FarMass(4, 8), rows)] == pytest.approx([want] * 4, abs=1e-5)


def test_which_queries_are_sampled_follows_from_their_position():
    """So they are the same whole and in chunks, alone and in a batch."""
    positions = torch.arange(-1, 3000)[None]
    chosen = positions[is_sampled(positions)].tolist()
    assert chosen[0] == 31
    assert len(chosen) == 32 + (3000 - 1024) // 256


def test_bad_settings_and_values_before_a_prompt():
    with pytest.raises(ConfigError, match="mass"):
        Span(mass=1.0)
    signal = Span()
    signal.start(2)
    with pytest.raises(CacheStateError, match="no attention"):
        signal.values()
