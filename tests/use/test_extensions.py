"""Mistakes in a policy, an allocator, a signal or a task of one's own are told in typed errors, early."""

from dataclasses import dataclass

import pytest
import torch

from squeezeattention import (
    ALLOCATORS,
    POLICIES,
    SIGNALS,
    Allocator,
    EvictionPolicy,
    Signal,
    SqueezeCache,
)
from squeezeattention.allocators import Allocation
from squeezeattention.errors import ConfigError, PlanError
from squeezeattention.tasks import TASKS, Task
from squeezeattention.testing import tiny_model

IDS = torch.arange(60)[None] % 90 + 3


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


class Nameless(EvictionPolicy):
    def priority(self, tokens, budget):
        return tokens.positions


class Silent(EvictionPolicy):
    name = "silent"


class Shares(Allocator):
    name = "shares"

    def allocate(self, signal_values, n_layers):
        return Allocation((1.0,) * n_layers, (1,) * n_layers)


class Measures(Signal):
    name = "measures"

    def start(self, n_layers):
        self.n = n_layers


class Asks(Task):
    name = "asks"

    def sample(self, count_tokens, length, seed, index):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("registry", "factory", "words"),
    [
        (POLICIES, Nameless, "policy Nameless has no name"),
        (POLICIES, Silent, "policy Silent has no method priority"),
        (POLICIES, "silent", "must be a class"),
        (ALLOCATORS, Shares, "allocator Shares has no needs_signal"),
        (SIGNALS, Measures, "signal Measures has no method values"),
        (TASKS, Asks, "task Asks has no metric"),
    ],
)
def test_what_cannot_work_is_not_registered(registry, factory, words):
    before = registry.names()
    with pytest.raises(ConfigError, match=words):
        registry.register("mine", factory)
    for name in ("", None, 3):
        with pytest.raises(ConfigError, match="under a name"):
            registry.register(name, registry.factory(before[0]))
    assert registry.names() == before


def test_objects_are_looked_at_as_well(model):
    with pytest.raises(ConfigError, match="policy Nameless has no name"):
        SqueezeCache(model, 12, Nameless())
    with pytest.raises(ConfigError, match="allocator Shares has no needs_signal"):
        SqueezeCache(model, 12, allocator=Shares())


def test_a_type_error_inside_a_constructor_is_not_about_the_options():
    class Broken(Nameless):
        name = "broken"

        def __init__(self, size=3):
            self.size = len(size)

    POLICIES.register("broken", Broken)
    try:
        with pytest.raises(TypeError, match="no len"):
            POLICIES.create("broken")
        with pytest.raises(ConfigError, match="cannot take"):
            POLICIES.create("broken", colour="red")
    finally:
        POLICIES.unregister("broken")


def policy_that_gives(make, **attributes):
    def priority(self, tokens, budget):
        return make(tokens)

    return type("Mine", (EvictionPolicy,), {"name": "mine", "priority": priority, **attributes})()


WRONG = {
    "None": (lambda t: None, "NoneType"),
    "bool": (lambda t: t.positions > 3, "torch.bool"),
    "complex": (lambda t: t.positions * 1j, "complex"),
    "one too few": (lambda t: t.positions[..., 1:].float(), r"a number for each token, .*got \[1, 1, "),
    "a number": (lambda t: torch.tensor(1.0), r"got \[\]"),
    "other heads": (lambda t: t.positions.expand(1, 3, -1)[None], r"got \[1, 1, 3, "),
    "scores": (lambda t: t.scores, "needs_scores = True"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("budget", [12, 63])
def test_wrong_rankings_are_told_at_the_first_one(model, case, budget):
    """At the prompt's end, or where the first token has to go while decoding; the cache says that it is of no use."""
    make, words = WRONG[case]
    cache = SqueezeCache(model, budget, policy_that_gives(make), "uniform")
    with pytest.raises(ConfigError, match=words):
        model.generate(IDS, past_key_values=cache, max_new_tokens=9, min_new_tokens=9, pad_token_id=0)


def test_nan_has_no_rank(model):
    def some_nan(tokens):
        return torch.where(tokens.positions == 7, torch.nan, tokens.positions.float())

    cache = SqueezeCache(model, 12, policy_that_gives(some_nan), "uniform")
    with pytest.raises(ConfigError, match=r"Mine\.priority gave NaN"):
        model.generate(IDS, past_key_values=cache, max_new_tokens=3, pad_token_id=0)


def test_rankings_of_any_shape_that_broadcasts(model):
    def run(policy):
        cache = SqueezeCache(model, 12, policy, "uniform")
        text = model.generate(IDS, past_key_values=cache, max_new_tokens=6, do_sample=False, pad_token_id=0)
        return text.tolist(), cache.kept_positions(2).tolist()

    want = run("sliding_window")
    for make in (
        lambda t: t.positions[0, 0],
        lambda t: t.positions.float(),
        lambda t: t.positions.to(torch.int32).expand(1, 2, -1),
        lambda t: t.scores * 0 + t.positions,
    ):
        assert run(policy_that_gives(make, needs_scores=True)) == want


def test_allocations_that_are_none(model):
    @dataclass(frozen=True)
    class Mine(Allocator):
        name = "mine"
        needs_signal = False
        given: object = None

        def allocate(self, signal_values, n_layers):
            return self.given

    for given, error, words in (
        (None, ConfigError, "must return an Allocation, got None"),
        ([0.2] * 4, ConfigError, "must return an Allocation"),
        (Allocation((1.0,) * 3, (1,) * 3), ConfigError, "one share and one cap per layer"),
        (Allocation((1.0,) * 4, (1,) * 3), PlanError, "groups"),
        (Allocation((1.0, float("nan"), 1.0, 1.0), (1,) * 4), ConfigError, "shares must be finite"),
    ):
        cache = SqueezeCache(model, 12, allocator=Mine(given))
        with pytest.raises(error, match=words):
            model.generate(IDS, past_key_values=cache, max_new_tokens=3, pad_token_id=0)
