"""The example that shows how to add a scorer: it is short, and works in Python and by name in commands."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from squeezeattention import POLICIES, SqueezeCache
from squeezeattention.cli.app import app
from squeezeattention.testing import NaiveReference, Recorded, teacher_forced, tiny_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_scorer.py"


@pytest.fixture(autouse=True)
def as_it_was():
    names = set(POLICIES.names())
    yield
    for name in set(POLICIES.names()) - names:
        POLICIES.unregister(name)


def test_the_example_is_short_and_prints_its_plan(capsys):
    assert len(EXAMPLE.read_text().splitlines()) < 60
    runpy.run_path(str(EXAMPLE))["main"]()
    assert "policy loud" in capsys.readouterr().out


def test_it_is_as_exact_as_the_built_in_ones():
    """Past the step where all is scored anew; heads with budgets of their own."""
    runpy.run_path(str(EXAMPLE))
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 101, (n,), generator=generator).tolist() for n in (60, 47)]
    generated = torch.randint(3, 101, (2, 70), generator=generator)
    budgets = [[16, 30], [24, 24], [9, 40], [30, 12]]
    cache = SqueezeCache(model, policy="loud", allocator=budgets)
    recorded = Recorded(cache)
    ours = teacher_forced(model, cache, rows, generated, after_step=recorded.note)
    for index, row in enumerate(rows):
        reference = NaiveReference(model, recorded.choice(index), [None] * 4, 2)
        want = reference.run(row, budgets, generated[index].tolist())
        assert (ours[index] - want).abs().max() <= 1e-4


def test_a_command_knows_it_by_name(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("def area(width, height):\n" * 12)
    given = ["generate", "embedded", "-f", str(prompt), "--policy", "loud", "--allocator", "adakv", "-b", "48"]
    result = CliRunner().invoke(app, [*given, "-n", "3", "--include", str(EXAMPLE), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["plan"]["policy"] == "loud"
