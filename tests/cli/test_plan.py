"""``squeeze plan``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squeezeattention import BudgetPlan
from squeezeattention.allocators import Squeeze, ZigZag
from squeezeattention.cli.console import ERR, OUT
from squeezeattention.errors import ConfigError
from squeezeattention.plan import build_plan
from squeezeattention.plots import plan_figure, save, signals_figure, stability_figure
from squeezeattention.stability import Observation

from ..conftest import refused
from .conftest import is_figure


def test_one_text(squeeze: Any, prompt_file: Path, tmp_path: Path) -> None:
    saved, plot = tmp_path / "plan.json", tmp_path / "plan.png"
    result = squeeze(
        "plan", "embedded", "-f", prompt_file, "-o", saved, "--plot", plot, "-b", "40", "--allocator", "zigzag"
    )
    assert result.exit_code == 0, result.stderr
    plan = BudgetPlan.load(saved)
    assert plan.base_budget == 40
    assert plan.signal_values is not None
    assert "zigzag plan" in result.stdout
    assert f"{plan.signal_values[0]:.4f}" in result.stdout
    assert str(saved) in result.stderr
    assert str(plot) in result.stderr
    assert is_figure(plot)
    assert "1 - span (low: matters more)" in result.stdout


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
        "--allocator",
        "squeeze",
    )
    result = squeeze(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert set(data) == {"model", "prompts", "plan", "plan_from", "stability", "output", "plot"}
    assert {entry["task"] for entry in data["prompts"]} == {"files"}
    assert data["stability"]["all"]["agreement"]["pairs"] == 1
    assert data["stability"]["between"]["pairs"] == 0
    assert [entry["source"] for entry in data["prompts"]] == [str(prompt_file), str(other)]
    assert "mean signal of 2 texts" in data["plan_from"]
    plans = [BudgetPlan.from_dict(entry["plan"]) for entry in data["prompts"]]
    final = BudgetPlan.load(saved)
    assert final == BudgetPlan.from_dict(data["plan"])
    first, second = (plan.signal_values or () for plan in plans)
    assert final.signal_values == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)])
    assert final.base_budget == pytest.approx((plans[0].base_budget + plans[1].base_budget) / 2, abs=0.5)
    assert is_figure(plot)
    shown = squeeze(*arguments)
    assert "mean signal of 2 texts" in shown.stdout
    assert "Layers: signal cosine (low: matters more), groups and budgets over 2 texts" in shown.stdout
    assert "G3: layers" in shown.stdout
    again = squeeze("generate", "embedded", "-p", "x = 1", "--allocator", saved, "-n", 2,
                    "--policy", "streaming_llm")  # fmt: skip
    assert again.exit_code == 0, again.stderr


TASKS = ("-t", "niah_single_1", "-t", "code", "--length", 256, "--samples", 3, "--seed", 1)


def test_tasks(squeeze: Any, model_folder: Path, tmp_path: Path) -> None:
    """The samples are those of `squeeze eval`; the frozen plan is of all of them, and can be served with."""
    saved, plot = tmp_path / "plan.json", tmp_path / "plan.png"
    result = squeeze("plan", model_folder, *TASKS, "-o", saved, "--plot", plot, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    sources = [(entry["source"], entry["task"]) for entry in data["prompts"]]
    assert sources == [(f"{task}/256/1/{i}", task) for task in ("niah_single_1", "code") for i in range(3)]
    assert all(entry["tokens"] == entry["plan"]["prompt_tokens"] <= 256 for entry in data["prompts"])
    found = data["stability"]
    assert [(task["task"], task["prompts"]) for task in found["tasks"]] == [("niah_single_1", 3), ("code", 3)]
    assert (found["within"]["pairs"], found["between"]["pairs"]) == (6, 9)
    assert [fit["against"] for fit in found["fits"]] == ["frozen", "unseen prompt", "unseen task", "uniform"]
    signals = [entry["plan"]["signal_values"] for entry in data["prompts"]]
    assert [layer["mean"] for layer in found["all"]["signal"]] == pytest.approx(BudgetPlan.load(saved).signal_values)
    assert [layer["high"] for layer in found["all"]["signal"]] == [max(layer) for layer in zip(*signals, strict=True)]
    assert is_figure(plot)
    served = squeeze("generate", model_folder, "-p", "x = 1", "--allocator", saved, "-n", 2, "--json")
    assert served.exit_code == 0, served.stderr
    assert json.loads(served.stdout)["plan"]["budgets"] == data["plan"]["budgets"]


def test_tables_of_tasks_fit_80_columns(squeeze: Any, model_folder: Path, prompt_file: Path) -> None:
    OUT.width = ERR.width = 80
    result = squeeze(
        "plan", model_folder, "-f", prompt_file, *TASKS, "--length", 300, "--budget", "0.4", "--allocator", "squeeze"
    )
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    for words in ("of two tasks", "code 300", "one made without its task", "mean signal of 13 texts", "uniform"):
        assert words in result.stdout


@pytest.mark.parametrize("allocator", ["squeeze", "zigzag", "cake"])
def test_frozen_by_shares(squeeze: Any, model_folder: Path, prompt_file: Path, tmp_path: Path, allocator: str) -> None:
    other, plot = tmp_path / "other.py", tmp_path / "plan.png"
    other.write_text("import os\n" * 40)
    arguments = ("plan", model_folder, "-f", prompt_file, other, "--freeze", "shares", "--allocator", allocator)
    data = json.loads(squeeze(*arguments, "--plot", plot, "--json").stdout)
    assert data["plan_from"] == "the mean shares of 2 texts"
    assert data["plan"]["allocator"] == f"{allocator}, mean shares"
    shares = [[b / sum(entry["plan"]["budgets"]) for b in entry["plan"]["budgets"]] for entry in data["prompts"]]
    mean = [sum(layer) / 2 * sum(data["plan"]["budgets"]) for layer in zip(*shares, strict=True)]
    assert data["plan"]["budgets"] == pytest.approx(mean, abs=1)
    assert is_figure(plot)


def test_lines_of_json(squeeze: Any, model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('"x = 1"\n\n{"prompt": "import os", "task": "code"}\n{"text": "y = 2"}\n')
    data = json.loads(squeeze("plan", model_folder, "--jsonl", path, "--json").stdout)
    sources = [(entry["source"], entry["task"]) for entry in data["prompts"]]
    assert sources == [(f"{path}:1", str(path)), (f"{path}:4", str(path)), (f"{path}:3", "code")]
    for line, words in (
        ("{", "no JSON"),
        ("3", "no prompt"),
        ('{"prompt": " "}', "no prompt"),
        ('{"a": 1}', "no prompt"),
    ):
        path.write_text(f'"x"\n{line}\n')
        refused(squeeze("plan", model_folder, "--jsonl", path), f"{path}:2", words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--length", 64), ("--task",)),
        (("-f", "FILE", "--samples", 2), ("--task",)),
        (("-t", "niah"), ("unknown task", "niah_single_1", "hotpotqa")),
        (("-t", "code", "-t", "code"), ("code", "more than once")),
        (("-t", "code", "--samples", 0), ("samples", "at least 1")),
        (("-t", "vt", "--length", 20), ("vt", "at least")),
        (("-t", "code", "--freeze", "mode"), ("--freeze", "signal, shares")),
        (("-t", "code", "--jsonl", "none.jsonl"), ("none.jsonl",)),
    ],
)
def test_refused(
    squeeze: Any, model_folder: Path, prompt_file: Path, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    given = [prompt_file if option == "FILE" else option for option in options]
    refused(squeeze("plan", model_folder, *given), *words)


def test_chunks_measure_the_same(squeeze: Any, prompt_file: Path) -> None:
    def values(*more: object) -> list[float]:
        data = json.loads(squeeze("plan", "embedded", "-f", prompt_file, "--json", *more).stdout)
        return list(data["plan"]["signal_values"])

    assert values("--chunk-size", 37) == pytest.approx(values(), abs=1e-5)


def test_repeated_option_and_stdin(squeeze: Any, prompt_file: Path) -> None:
    twice = squeeze("plan", "embedded", "-f", prompt_file, "-f", prompt_file, "--json")
    assert len(json.loads(twice.stdout)["prompts"]) == 2
    piped = squeeze("plan", "embedded", "--json", text="x = 1\n" * 20)
    assert json.loads(piped.stdout)["prompts"][0]["source"] == "stdin"


def _plan(signal_values: list[float], signal: str = "cosine") -> BudgetPlan:
    caps = [200] * len(signal_values)
    return build_plan(Squeeze(), signal_values=signal_values, base_budget=50, caps=caps, signal=signal)


@pytest.mark.parametrize(
    "signal_values",
    [[0.9] * 4, [1.0, 0.5, 0.7, 0.9], [-0.4, 0.2, 0.99, 0.9999], [0.98, 0.981, 0.982, 0.983], [0.7]],
)
@pytest.mark.parametrize("signal", ["cosine", "other"])
def test_figures_of_any_signal(tmp_path: Path, signal_values: list[float], signal: str) -> None:
    plan = _plan(signal_values, signal)
    path = save(plan_figure([("a", plan), ("b" * 50, plan)]), tmp_path / "plan.png")
    assert is_figure(path)


@pytest.mark.parametrize(
    ("signal", "label"), [("cosine", "cosine (low: matters more)"), ("span", "1 - span (low: matters more)")]
)
def test_figures_say_which_way_a_signal_points(signal: str, label: str) -> None:
    plan = _plan([0.1, 0.5, 0.9], signal)
    seen = [Observation("a", "a", plan)] * 2
    alone = signals_figure({signal: [("a", [0.1, 0.2])]}, title="")
    for figure in (plan_figure([("a", plan)]), stability_figure(seen, plan), alone):
        assert figure.axes[0].get_title(loc="left") == label


def test_figure_of_many_layers_and_prompts(tmp_path: Path) -> None:
    plans = [(f"prompt {i}", _plan([0.5 + (i * layer % 7) / 20 for layer in range(80)])) for i in range(50)]
    assert is_figure(save(plan_figure(plans), tmp_path / "plan.png"))


@pytest.mark.parametrize("tasks", [("a",), ("a", "b" * 50, "c")])
@pytest.mark.parametrize(("n_prompts", "n_layers"), [(3, 6), (20, 80)])
def test_figures_of_stability(tmp_path: Path, tasks: tuple[str, ...], n_prompts: int, n_layers: int) -> None:
    seen = [
        Observation(f"prompt {i}", task, _plan([0.5 + ((i + j) * layer % 7) / 20 for layer in range(n_layers)]))
        for i in range(n_prompts)
        for j, task in enumerate(tasks)
    ]
    assert is_figure(save(stability_figure(seen, seen[0].plan), tmp_path / "plan.png"))


def test_figure_without_groups(tmp_path: Path) -> None:
    plan = build_plan(ZigZag(), signal_values=[0.5, 0.7, 0.9], base_budget=50, caps=[200] * 3, signal="span")
    assert is_figure(save(stability_figure([Observation("a", "a", plan)] * 2, plan), tmp_path / "plan.png"))


def test_figures_of_stability_refuse_what_they_cannot_show() -> None:
    plan = _plan([0.1, 0.2, 0.3])
    with pytest.raises(ConfigError, match="at least one"):
        stability_figure([], plan)
    with pytest.raises(ConfigError, match="same number"):
        stability_figure([Observation("a", "a", plan)], _plan([0.1, 0.2]))
    with pytest.raises(ConfigError, match="signal"):
        stability_figure([Observation("a", "a", BudgetPlan.from_budgets([3, 4, 5]))], plan)


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


# ------------------------------------------------------------------- KV heads


def _heads_plan(n_layers: int = 6, heads: int = 3, turn: int = 0) -> BudgetPlan:
    budgets = [[90 if (layer + turn) % heads == head else 15 for head in range(heads)] for layer in range(n_layers)]
    values = tuple(0.5 + layer / 100 for layer in range(n_layers))
    return replace(BudgetPlan.from_budgets(budgets, allocator="probe"), signal="replay", signal_values=values)


@pytest.mark.parametrize(("n_layers", "heads"), [(6, 3), (80, 8), (2, 1)])
def test_figures_of_heads(tmp_path: Path, n_layers: int, heads: int) -> None:
    plans = [_heads_plan(n_layers, heads, turn) for turn in range(2)]
    assert is_figure(save(plan_figure([("a", plans[0])]), tmp_path / "one.png"))
    assert is_figure(save(plan_figure([("a", plans[0]), ("b", plans[1])]), tmp_path / "two.png"))
    seen = [Observation(str(turn), "a", plan) for turn, plan in enumerate(plans)]
    assert is_figure(save(stability_figure(seen, plans[0]), tmp_path / "frozen.png"))


def test_a_map_of_heads_is_labelled_and_says_where_the_cache_is() -> None:
    plan = _heads_plan()
    figure = plan_figure([("a", plan)])
    assert figure.get_suptitle() == "Half of the cache is in 4 of 18 KV heads"  # 360 of 6 * 120 tokens
    (heads,) = (axes for axes in figure.axes if axes.get_title(loc="left") == "budget of each KV head")
    assert heads.get_ylabel() == "KV head"
    (mesh,) = heads.collections
    assert mesh.get_array().tolist() == [list(head) for head in zip(*plan.head_budgets or (), strict=True)]
    assert "tokens kept" in [axes.get_ylabel() for axes in heads.child_axes]
    alone = plan_figure([("a", BudgetPlan.from_dict({**plan.to_dict(), "head_budgets": None}))])
    assert alone.get_suptitle() == "Half of the cache is in 3 of 6 layers"
    known = replace(plan, signal=None, signal_values=None)  # as a calibration gives them
    titles = ["budget of each KV head", "budget of each layer (mean of its heads)"]
    assert [axes.get_title(loc="left") for axes in plan_figure([("a", known)]).axes] == titles
    assert len(stability_figure([Observation("a", "a", known)] * 2, known).axes) == 2


def test_several_texts_with_budgets_for_heads(squeeze: Any, prompt_file: Path, tmp_path: Path) -> None:
    other, saved, plot = tmp_path / "other.py", tmp_path / "plan.json", tmp_path / "plan.png"
    other.write_text(prompt_file.read_text()[::-1])
    arguments = ("plan", "embedded", "-f", prompt_file, other, "--allocator", "probe", "--budget", 60)
    result = squeeze(*arguments, "-o", saved, "--plot", plot)
    assert result.exit_code == 0, result.stderr
    assert "the mean shares of 2 texts" in result.stdout
    assert "KV heads" in result.stdout
    assert is_figure(plot)
    plan = BudgetPlan.load(saved)
    assert plan.head_budgets is not None
    used = squeeze("generate", "embedded", "-f", prompt_file, "--allocator", saved, "-n", 2, "--json")
    assert json.loads(used.stdout)["plan"]["head_budgets"] == [list(layer) for layer in plan.head_budgets]
    refused(squeeze(*arguments, "--freeze", "signal"), "freeze them by shares")
