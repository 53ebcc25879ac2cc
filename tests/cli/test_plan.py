"""``squeeze plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from squeezeattention import BudgetPlan
from squeezeattention.allocators import Squeeze
from squeezeattention.errors import ConfigError
from squeezeattention.plan import build_plan
from squeezeattention.plots import plan_figure, save

from .conftest import is_figure


def test_one_text(squeeze: Any, prompt_file: Path, tmp_path: Path) -> None:
    saved, plot = tmp_path / "plan.json", tmp_path / "plan.png"
    result = squeeze("plan", "embedded", "-f", prompt_file, "-o", saved, "--plot", plot, "-b", "40")
    assert result.exit_code == 0, result.stderr
    plan = BudgetPlan.load(saved)
    assert plan.base_budget == 40
    assert plan.importance is not None
    assert "squeeze plan" in result.stdout
    assert f"{plan.importance[0]:.4f}" in result.stdout
    assert str(saved) in result.stderr
    assert str(plot) in result.stderr
    assert is_figure(plot)


def test_several_texts_give_the_plan_of_their_mean(squeeze: Any, prompt_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("import os\n" * 40)
    saved, plot = tmp_path / "plan.json", tmp_path / "plan.png"
    arguments = (
        "plan",
        "embedded",
        "-f",
        prompt_file,
        other,
        "-o",
        saved,
        "--plot",
        plot,
        "--policy",
        "streaming_llm",
    )
    result = squeeze(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert set(data) == {"model", "prompts", "plan", "plan_from", "output", "plot"}
    assert [entry["source"] for entry in data["prompts"]] == [str(prompt_file), str(other)]
    assert "mean importance of 2 texts" in data["plan_from"]
    plans = [BudgetPlan.from_dict(entry["plan"]) for entry in data["prompts"]]
    final = BudgetPlan.load(saved)
    assert final == BudgetPlan.from_dict(data["plan"])
    first, second = (plan.importance or () for plan in plans)
    assert final.importance == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)])
    assert final.base_budget == pytest.approx((plans[0].base_budget + plans[1].base_budget) / 2, abs=0.5)
    assert is_figure(plot)
    shown = squeeze(*arguments)
    assert "mean importance of 2 texts" in shown.stdout
    assert "G3: layers" in shown.stdout
    again = squeeze("generate", "embedded", "-p", "x = 1", "--allocator", saved, "-n", 2,
                    "--policy", "streaming_llm")  # fmt: skip
    assert again.exit_code == 0, again.stderr


def test_chunks_measure_the_same(squeeze: Any, prompt_file: Path) -> None:
    def importance(*more: object) -> list[float]:
        data = json.loads(squeeze("plan", "embedded", "-f", prompt_file, "--json", *more).stdout)
        return list(data["plan"]["importance"])

    assert importance("--chunk-size", 37) == pytest.approx(importance(), abs=1e-5)


def test_repeated_option_and_stdin(squeeze: Any, prompt_file: Path) -> None:
    twice = squeeze("plan", "embedded", "-f", prompt_file, "-f", prompt_file, "--json")
    assert len(json.loads(twice.stdout)["prompts"]) == 2
    piped = squeeze("plan", "embedded", "--json", text="x = 1\n" * 20)
    assert json.loads(piped.stdout)["prompts"][0]["source"] == "stdin"


def _plan(importance: list[float], signal: str = "cosine") -> BudgetPlan:
    caps = [200] * len(importance)
    return build_plan(Squeeze(), importance=importance, base_budget=50, caps=caps, signal=signal)


@pytest.mark.parametrize(
    "importance",
    [[0.9] * 4, [1.0, 0.5, 0.7, 0.9], [-0.4, 0.2, 0.99, 0.9999], [0.98, 0.981, 0.982, 0.983], [0.7]],
)
@pytest.mark.parametrize("signal", ["cosine", "other"])
def test_figures_of_any_signal(tmp_path: Path, importance: list[float], signal: str) -> None:
    plan = _plan(importance, signal)
    path = save(plan_figure([("a", plan), ("b" * 50, plan)]), tmp_path / "plan.png")
    assert is_figure(path)


def test_figure_of_many_layers_and_prompts(tmp_path: Path) -> None:
    plans = [(f"prompt {i}", _plan([0.5 + (i * layer % 7) / 20 for layer in range(80)])) for i in range(50)]
    assert is_figure(save(plan_figure(plans), tmp_path / "plan.png"))


def test_figures_refuse_what_they_cannot_show() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        plan_figure([])
    with pytest.raises(ConfigError, match="same number"):
        plan_figure([("a", _plan([0.1, 0.2, 0.3])), ("b", _plan([0.1, 0.2]))])
    with pytest.raises(ConfigError, match="signal"):
        plan_figure([("a", BudgetPlan.from_budgets([3, 4]))])


def test_figures_leave_pyplot_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    save(plan_figure([("a", _plan([0.5, 0.7, 0.9]))]), tmp_path / "plan.png")
    assert dict(matplotlib.rcParams) == before
