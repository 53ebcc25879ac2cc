"""``squeeze demo`` on a tiny scenario."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from squeezeattention import BudgetPlan, demo, load_embedded
from squeezeattention.allocators import DEFAULT_ALLOCATOR
from squeezeattention.demo.measure import REFERENCE, Measured, Result
from squeezeattention.tasks import corpus, recall

from .conftest import is_figure

TINY = demo.Settings(
    length=160, contexts=2, facts=3, policies=("streaming_llm", "h2o"), budgets=(0.2, 0.6), decode_tokens=3,
    reference=False,
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "QUICK", TINY)


@pytest.mark.usefixtures("tiny")
def test_json_and_files(squeeze: Any, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    result = squeeze("demo", "--quick", "--out", out, "--json", "--seed", 3)
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert set(data) == {
        "settings", "contexts", "full", "rows", "whole_layer", "findings", "seconds", "files",
    }  # fmt: skip
    assert data["settings"]["seed"] == 3
    assert [Path(path).name for path in data["files"]] == [
        "demo.json", "accuracy_vs_bytes.png", "plans_squeeze.png", "plans_lookup.png",
    ]  # fmt: skip
    written = json.loads((out / "demo.json").read_text())
    assert written == {name: value for name, value in data.items() if name != "files"}
    assert is_figure(out / "accuracy_vs_bytes.png")
    assert is_figure(out / "plans_lookup.png")
    assert is_figure(out / "plans_squeeze.png")
    assert len(data["rows"]) == 2 * 2 * 3
    full = data["full"]
    for row in data["rows"]:
        assert row["n"] == len(row["answers"]) == 6
        assert row["right"] == sum(row["answers"])
        assert row["interval"][0] <= row["right"] / 6 <= row["interval"][1]
        assert row["tokens_per_s"] > 0
        plans = [BudgetPlan.from_dict(plan) for plan in row["plans"]]
        for held, peak, whole, plan in zip(row["bytes"], row["peak_bytes"], full["bytes"], plans, strict=True):
            assert held <= plan.total * 2 * 2 * 64 * 4  # keys and values, 2 heads of 64, fp32
            assert held < whole
            # Uniform budgets are known before the prompt is read: its layers are cut one by one.
            assert held < peak < whole if row["allocator"] == "uniform" else peak == whole


@pytest.mark.usefixtures("tiny")
def test_table_paragraph_and_paths(squeeze: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = squeeze("demo", "--quick", "--out", out, "--contexts", 1, "--facts", 2, "--p", 0.4)
    assert result.exit_code == 0, result.stderr
    for word in ("full cache", '"squeeze"', DEFAULT_ALLOCATOR, "KV held", "95 %", "Against uniform", "demo.json"):
        assert word in result.stdout
    assert "1 contexts" in result.stdout
    assert json.loads((out / "demo.json").read_text())["settings"]["p"] == 0.4


def test_contexts_are_held_out_seeded_and_of_the_length_asked_for() -> None:
    _, tokenizer = load_embedded()
    settings = demo.Settings(length=300, contexts=3, facts=4)
    contexts = demo.build_contexts(tokenizer, settings)
    assert contexts == demo.build_contexts(tokenizer, settings)
    assert contexts != demo.build_contexts(tokenizer, dataclasses.replace(settings, seed=1))
    assert contexts != demo.build_contexts(tokenizer, settings, salt="other")
    for context in contexts:
        assert corpus.is_held_out(context.source)
        assert 200 < len(context.tokens) <= 300
        text = tokenizer.decode(context.tokens)
        for fact in context.facts:
            assert recall.is_held_out_name(fact.name)
            assert text.count(fact.statement) == 1


def test_reference_keeps_one_layer_whole() -> None:
    """Forced onto a layer, since which one recalls depends on the model."""
    model, tokenizer = load_embedded()
    settings = dataclasses.replace(TINY, policies=("streaming_llm",), contexts=1, reference=True)
    seen: list[tuple[int, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("squeezeattention.demo.measure._layer_that_recalls", lambda *_: 4)
        result = demo.run(model, tokenizer, settings, lambda total, what: seen.append((total, what)))
    rows = [row for row in result.rows if row.label == REFERENCE]
    assert result.whole_layer == 4
    assert [row.budget for row in rows] == [0.2, 0.6]
    for row in rows:
        (plan,), tokens = row.plans, len(result.contexts[0].tokens)
        assert plan.budgets[4] >= tokens
        assert plan.total == len(plan.budgets) * round(row.budget * tokens)
    assert len({total for total, _ in seen}) == 1
    assert len(seen) <= seen[0][0]
    assert REFERENCE in demo.findings(result)


def test_layer_that_recalls_is_found_by_cutting_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from squeezeattention.demo import measure as module

    model, tokenizer = load_embedded()
    monkeypatch.setattr(module, "read", lambda *_: None)

    def ask(harmful: int) -> Any:
        def recall_facts(model: Any, tokenizer: Any, cache: Any, facts: Any) -> list[bool]:
            budgets = cache.allocator.plan.budgets
            return [min(budgets) == max(budgets) or budgets.index(min(budgets)) != harmful] * len(facts)

        return recall_facts

    for layer, found in ((7, 7), (99, None)):  # 99: no cut hurts
        monkeypatch.setattr(module, "recall_facts", ask(layer))
        assert module._layer_that_recalls(model, tokenizer, TINY, lambda what: None) == found


def _row(policy: str | None, budget: float, label: str, right: int, n: int = 40) -> Measured:
    size = int(1000 * budget)
    plan = BudgetPlan.from_budgets([size, size])
    return Measured(policy, budget, label, [i < right for i in range(n)], [size], [1000], [plan], 50.0)


def _result(full: int, **right: int) -> Result:
    settings = demo.Settings(contexts=1, policies=("h2o",), budgets=(0.3,))
    rows = [_row("h2o", 0.3, REFERENCE if name == "whole" else name, count) for name, count in right.items()]
    whole = 1 if "whole" in right else None
    return Result(settings, [], _row(None, 1.0, "full cache", full), rows, whole)


def test_findings_follow_the_numbers() -> None:
    text = demo.findings(_result(40, uniform=10, squeeze=2, lookup=39, whole=40))
    assert "40 of 40 answers (100%" in text
    assert '"squeeze" is better in 0 of 1 pairs of policy and budget, worse in 1' in text
    assert '"lookup" is better in 1 of 1' in text
    assert "smallest cache within 5% of the full score is h2o with lookup budgets" in text
    assert "keeps layer 1" in text
    text = demo.findings(_result(20, uniform=10, squeeze=11, lookup=10))
    assert "not to be told apart in 1" in text
    assert "No setting comes within 5%" in text
    assert "For comparison" not in text
    assert "so few" in demo.findings(_result(0, uniform=0, squeeze=0, lookup=0))
