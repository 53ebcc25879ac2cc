"""The example that shows how to add a policy: it runs, it is short, and it is exact like the built-in ones."""

import runpy
from pathlib import Path

import pytest
import torch

from squeezeattention import POLICIES, SqueezeCache
from squeezeattention.testing import teacher_forced, tiny_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_policy.py"


@pytest.fixture
def strided():
    names = set(POLICIES.names())
    yield runpy.run_path(str(EXAMPLE))
    for name in set(POLICIES.names()) - names:
        POLICIES.unregister(name)


def test_the_example_is_short_and_prints_its_plan(strided, capsys):
    assert len(EXAMPLE.read_text().splitlines()) < 50
    strided["main"]()
    assert "policy strided" in capsys.readouterr().out


def test_it_keeps_landmarks_and_holds_its_budget(strided):
    model = tiny_model("llama")
    cache = SqueezeCache(model, budget=16, policy="strided", allocator="uniform")
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 101, (n,), generator=generator).tolist() for n in (40, 33)]
    teacher_forced(model, cache, rows, torch.randint(3, 101, (2, 30), generator=generator))
    assert cache.lengths() == [16] * 4
    for row, length in enumerate((70, 63)):
        kept = set(cache.kept_positions(2)[row, 0].tolist())
        recent = set(range(length - 8, length))
        landmarks = set(range(0, length - 8, 8))
        assert recent | landmarks <= kept
        assert len(kept) == 16
