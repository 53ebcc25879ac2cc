"""Settings, specs and the pieces of work that follow."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from squeezeattention import SqueezeError, load_embedded
from squeezeattention.errors import BudgetError, ConfigError, UnknownNameError
from squeezeattention.evaluation import FULL, Settings, Spec
from squeezeattention.evaluation.config import Config, budget_text


def test_the_full_cache_comes_once_and_first_for_each_sample(settings: Settings) -> None:
    settings = replace(settings, budgets=("0.3", "20"), policies=("h2o", "streaming_llm"), ps=(0.3, 0.5), seeds=(0, 1))
    units = list(settings.units())
    assert len({unit.id for unit in units}) == len(units) == 3 * 2 * 2 * (1 + 2 * 2 * (1 + 2))
    per_sample = len(settings.configs())
    for start in range(0, len(units), per_sample):
        assert units[start].config == FULL
        assert len({unit.sample for unit in units[start : start + per_sample]}) == 1
    assert all(unit.sample.index == 0 for unit in units[: len(units) // 2])


def test_ids_do_not_depend_on_how_things_are_written(settings: Settings) -> None:
    one = replace(settings, budgets=("20%", "1KiB"), allocators=("squeeze:p=0.3, outliers=clamp",))
    two = replace(settings, budgets=("0.20", "1024B"), allocators=("squeeze:outliers=clamp,p=0.3",))
    assert [unit.id for unit in one.units()] == [unit.id for unit in two.units()]
    assert next(u.id for u in one.units() if u.config != FULL) == (
        "lines/40/0/0/streaming_llm/squeeze:outliers=clamp,p=0.3/0.2"
    )


def test_an_allocator_without_p_is_not_swept(settings: Settings) -> None:
    swept = replace(settings, ps=(0.2, 0.4, 1))
    assert [str(config.allocator) for config in swept.configs()[1:]] == [
        "uniform", "squeeze:p=0.2", "squeeze:p=0.4", "squeeze:p=1.0",
    ]  # fmt: skip
    assert [config.p for config in swept.configs()] == [None, None, 0.2, 0.4, 1.0]


def test_settings_survive_json(settings: Settings) -> None:
    settings = replace(settings, ps=(0.3,), chunk=7, question="visible")
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(ConfigError, match="colour"):
        Settings.from_dict({**settings.to_dict(), "colour": 1})


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"tasks": ()}, ConfigError, "tasks"),
        ({"tasks": ("nothing",)}, UnknownNameError, "recall"),
        ({"tasks": ("lines:colour=1",)}, ConfigError, "colour"),
        ({"policies": ("h20",)}, UnknownNameError, "h2o"),
        ({"policies": ("h2o", "h2o")}, ConfigError, "more than once"),
        ({"allocators": ("squeeze:p=3",)}, ConfigError, "p must be"),
        ({"allocators": ("squeeze:signal=noise",)}, UnknownNameError, "cosine"),
        ({"allocators": ("squeeze:p=0.3",), "ps": (0.4,)}, ConfigError, "twice"),
        ({"allocators": ("uniform", "zigzag"), "ps": (0.4,)}, ConfigError, "has a p"),
        ({"allocators": ("squeeze:",)}, ConfigError, "squeeze:"),
        ({"allocators": ("squeeze:prefill=fast",)}, ConfigError, "prefill must be"),
        ({"budgets": ("0",)}, BudgetError, "'0'"),
        ({"budgets": ("0.2", "20%")}, ConfigError, "more than once"),
        ({"budgets": ("3",)}, BudgetError, "streaming_llm"),
        ({"ps": (0.0,)}, ConfigError, "p must be"),
        ({"samples": 0}, ConfigError, "samples"),
        ({"lengths": (0,)}, ConfigError, "lengths"),
        ({"chunk": 0}, ConfigError, "chunk"),
        ({"question": "loud"}, ConfigError, "loud"),
    ],
)
def test_settings_that_cannot_work(
    settings: Settings, change: dict[str, Any], error: type[SqueezeError], word: str
) -> None:
    with pytest.raises(error, match=word):
        replace(settings, **change).make_tasks()


def test_specs() -> None:
    spec = Spec.parse(" squeeze:outliers=clamp,groups=4 ")
    assert str(spec) == "squeeze:groups=4,outliers=clamp"
    assert spec.label == "squeeze groups=4 clamp"
    assert spec.get("groups") == 4
    assert spec.get("p") is None
    assert str(spec.having(p=0.5).without("groups")) == "squeeze:outliers=clamp,p=0.5"
    assert Spec.parse("a:b=true,c=null,d=x y").options == (("b", True), ("c", None), ("d", "x y"))
    for text in ("", ":", "a:b", "a:b=", "a:=1", "a:b=1,b=2"):
        with pytest.raises(ConfigError, match="cannot read"):
            Spec.parse(text)


def test_budget_texts() -> None:
    assert [budget_text(value) for value in (0.2, "20%", 1.0, "1", 64, "2KiB", 0.00001)] == [
        "0.2", "0.2", "1.0", "1", "64", "2048B", "0.00001",
    ]  # fmt: skip


def test_options_of_the_cache_go_with_the_allocator() -> None:
    model, _ = load_embedded()
    config = Config(Spec.parse("h2o"), Spec.parse("zigzag:prefill=bounded,chunk_size=64,power=2"), "0.2").check()
    cache = config.make_cache(model, 8)
    assert (cache.prefill, cache.chunk_size, cache.allocator.power) == ("bounded", 64, 2)
    cache = Config(Spec.parse("h2o"), Spec.parse("squeeze:signal=span"), "0.2").make_cache(model, 8)
    assert (cache.prefill, cache.signal.name) == ("exact", "span")
