"""No argument is passed over in silence, and a repr tells what is in force."""

import pytest
import torch

from squeezeattention import BudgetPlan, SqueezeCache, squeeze
from squeezeattention.allocators import ALLOCATORS, Uniform
from squeezeattention.errors import ConfigError
from squeezeattention.hf import attachment
from squeezeattention.signals import SIGNALS
from squeezeattention.testing import rules_for, tiny_model

FIXED = [10, 30, 8, 12]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.mark.parametrize("use", [SqueezeCache, squeeze])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"budget": 12, "allocator": FIXED}, "budget=12 has no effect"),
        ({"budget": 0.2, "allocator": BudgetPlan.from_budgets(FIXED)}, r"budget=0\.2 has no effect"),
        ({"signal": "cosine", "allocator": FIXED}, "signal='cosine' has no effect"),
        ({"p": 0.3, "allocator": FIXED}, "changes nothing"),
        ({"p": 0.3, "allocator": "zigzag"}, "'zigzag' has no p"),
        ({"outliers": "clamp", "allocator": "uniform"}, "'uniform' has no outliers"),
        ({"p": 0.3, "allocator": Uniform()}, "changes nothing"),
        ({"sinks": 2, "policy": "h2o"}, "streaming_llm"),
        ({"positions": "cache", "policy": "sliding_window"}, "streaming_llm"),
    ],
)
def test_arguments_without_effect_are_refused(model, use, arguments, words):
    with pytest.raises(ConfigError, match=words):
        use(model, **arguments)


@pytest.mark.parametrize("name", rules_for())
def test_a_signal_goes_with_rules_that_measure(model, name):
    rule = ALLOCATORS.create(name)
    for signal in SIGNALS:
        if rule.needs_signal and SIGNALS.factory(signal).wants_scores:
            with pytest.raises(ConfigError, match="has none: use a policy that scores tokens"):
                SqueezeCache(model, allocator=name, signal=signal, policy="streaming_llm")
            assert SqueezeCache(model, allocator=name, signal=signal, policy="h2o").signal.name == signal
        elif rule.needs_signal:
            assert SqueezeCache(model, allocator=name, signal=signal).signal.name == signal
        else:
            with pytest.raises(ConfigError, match=f"{name!r} measures nothing"):
                SqueezeCache(model, allocator=name, signal=signal)


def test_rules_that_measure_nothing_do_not_look_at_the_model(monkeypatch):
    """No probe, and no hooks while the prompt is read."""
    model = tiny_model("llama", seed=5)

    def probe(*args):
        raise AssertionError("probed")

    monkeypatch.setattr(attachment, "find_spots", probe)
    ids = torch.arange(3, 63)[None]
    for allocator in ("uniform", "pyramid", FIXED):
        cache = SqueezeCache(model, None if allocator is FIXED else 12, allocator=allocator)
        model.generate(ids, past_key_values=cache, max_new_tokens=3, pad_token_id=0)
        assert cache.plan.signal_values is None
        assert sum(cache.lengths()) == cache.plan.total
    with pytest.raises(AssertionError, match="probed"):
        model.generate(ids, past_key_values=SqueezeCache(model, 12, allocator="squeeze"), max_new_tokens=3)


def test_a_repr_tells_the_budget_in_force(model):
    ids = torch.arange(200)[None] % 98 + 3
    cache = SqueezeCache(model, 0.4, "streaming_llm", "uniform")
    assert "budget=40% of the prompt," in repr(cache)
    model.generate(ids, past_key_values=cache, max_new_tokens=3, pad_token_id=0)
    assert "budget=40% of the prompt (80 tokens a layer, 320 in all)" in repr(cache)
    fixed = SqueezeCache(model, allocator=FIXED)
    assert "budget=fixed," in repr(fixed)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=fixed)
    held = fixed.layers[0].store.used
    assert "seen=200" in repr(fixed)
    assert fixed.layers[0].store.used == held, "asking for a repr has cut the cache"
    fixed.compact()
    assert "budget=fixed (8 to 30 tokens a layer, 60 in all)" in repr(fixed)
