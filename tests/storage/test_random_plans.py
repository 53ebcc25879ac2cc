"""Tens of thousands of random plans: totals, caps and floors always hold."""

import random

import pytest

from squeezeattention.allocators import resolve_allocator, takes
from squeezeattention.plan import build_plan
from squeezeattention.testing import rules_for


@pytest.mark.parametrize("worker", range(4))
def test_invariants_hold(worker):
    rng = random.Random(worker)
    names = rules_for()
    for _ in range(12_000):
        layers = rng.randint(1, 12)
        base, floor = rng.randint(5, 300), rng.randint(1, 5)
        caps = [rng.choice([None, rng.randint(1, 400)]) for _ in range(layers)]
        name, p = rng.choice(names), rng.choice([None, 1.0, rng.uniform(0.01, 1)])
        allocator = resolve_allocator(name, p=p if takes(name, "p") else None)
        signal_values = [rng.choice([0.3, 0.9, rng.random()]) for _ in range(layers)]
        plan = build_plan(allocator, signal_values=signal_values, base_budget=base, caps=caps, floor=floor)
        assert plan.check() is plan
        most = float("inf") if None in caps else sum(caps)
        assert plan.total == min(layers * base, most)
        for budget, cap in zip(plan.budgets, caps, strict=True):
            assert min(floor, cap or floor) <= budget <= (cap or budget)
        again = build_plan(allocator, signal_values=signal_values, base_budget=base, caps=caps, floor=floor)
        assert plan == again
