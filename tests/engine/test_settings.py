"""What an engine may be told, and what it refuses."""

import dataclasses
import json

import pytest

from squeezeattention import BudgetPlan
from squeezeattention.engine import EngineSettings
from squeezeattention.errors import BudgetError, ConfigError, PlanError, UnsupportedFeatureError

PLAN = BudgetPlan.from_budgets([64, 96])
HEADS = BudgetPlan.from_budgets([[20, 108], [96, 96]])


def test_all_ways_of_giving_a_plan(tmp_path):
    path = tmp_path / "plan.json"
    PLAN.save(path)
    ways = (str(path), path, {"plan": str(path)}, {"plan": PLAN.to_dict()})
    for given in ways:
        settings = EngineSettings.read(given)
        assert (settings.plan, settings.sinks, settings.prefill) == (PLAN, 4, "full")
    again = EngineSettings.read(json.loads(json.dumps(settings.to_dict())))
    assert again == settings
    assert EngineSettings.read({"plan": PLAN.to_dict(), "policy": "sliding_window"}).sinks == 0
    assert EngineSettings.read({"plan": PLAN.to_dict(), "sinks": 40, "prefill": "windowed"}).sinks == 40


def test_refusals(tmp_path):
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    plan = PLAN.to_dict()
    by_length = [dataclasses.replace(HEADS, prompt_tokens=tokens).to_dict() for tokens in (100, 200)]
    for given, error, words in (
        (None, ConfigError, "path of a plan"),
        ({"prefill": "full"}, ConfigError, "path of a plan"),
        ({"plan": 3}, ConfigError, "a path or a JSON object"),
        ({"plan": plan, "block": 1}, ConfigError, "unknown settings of squeeze: block"),
        ({"plan": plan, "prefill": "half"}, ConfigError, "prefill must be one of full, windowed, got 'half'"),
        ({"plan": plan, "sinks": True}, ConfigError, "sinks must be"),
        ({"plan": plan, "policy": "h2o", "design": "compact"}, UnsupportedFeatureError, "'h2o' ranks single tokens"),
        ({"plan": plan, "policy": "h2o", "prefill": "windowed"}, UnsupportedFeatureError, "reads prompts in full"),
        ({"plan": plan, "design": "loose"}, ConfigError, "design must be one of compact, slab, got 'loose'"),
        ({"plan": plan, "policy": "newest"}, ConfigError, "newest"),
        (
            {"plan": plan, "policy": "snapkv"},
            UnsupportedFeatureError,
            "'snapkv' scores tokens by queries of the ans.*one of h2o, keyd",
        ),
        ({"plan": plan, "policy": "kvzip", "design": "slab"}, UnsupportedFeatureError, "'kvzip' scores tokens"),
        ({"plan": HEADS.to_dict(), "design": "compact"}, UnsupportedFeatureError, "one block table for all KV heads"),
        ({"plan": HEADS.to_dict(), "per_prompt": {"allocator": "squeeze"}}, UnsupportedFeatureError, "by KV head: say"),
        ({"plan": by_length, "per_prompt": True}, UnsupportedFeatureError, "one total for all prompts, and 2 plans"),
        (str(tmp_path / "none.json"), PlanError, "none.json"),
        (str(damaged), PlanError, "damaged.json"),
        ({"plan": {}}, PlanError, "plan"),
    ):
        with pytest.raises(error, match=words):
            EngineSettings.read(given)
    with pytest.raises(PlanError, match="2 layers, but the model has 3"):
        EngineSettings.read({"plan": plan}).blocks(32, 3)


def test_budgets_by_head_take_the_slab():
    settings = EngineSettings.read({"plan": HEADS.to_dict()})
    assert (settings.design, settings.policy, settings.by_head) == ("slab", "streaming_llm", True)
    settings.check(32)
    blocks = settings.blocks(32, 2, 2)
    assert blocks.tokens == (64, 96)
    assert settings.rooms(blocks, 2) == ((20, 108), (96, 96))
    with pytest.raises(PlanError, match="2 KV heads in layer 0, but the model keeps 3"):
        settings.blocks(32, 2, 3)
    with pytest.raises(BudgetError, match="less than one a layer"):
        settings.check(256)
    many = EngineSettings.read({"plan": HEADS.to_dict(), "sinks": 70})
    with pytest.raises(BudgetError, match="budget of 64 tokens in each KV head, but the policy needs 71"):
        many.check(32)


def test_plans_for_prompts_of_different_lengths():
    short = dataclasses.replace(HEADS, prompt_tokens=500)
    long = dataclasses.replace(BudgetPlan.from_budgets([[40, 216], [192, 192]]), prompt_tokens=2000)
    settings = EngineSettings.read({"plan": [long.to_dict(), short.to_dict()]})
    assert [settings.plans.of(tokens) for tokens in (1, 500, 501, 9000)] == [short, short, long, long]
    assert settings.plan == long
    settings.check(32)
    assert EngineSettings.read(json.loads(json.dumps(settings.to_dict()))) == settings
    for plans, error, words in (
        ([], ConfigError, "list of plans is empty"),
        ([HEADS, long], ConfigError, "prompt_tokens.*got None, 2000"),
        ([long, long], ConfigError, "each another number"),
        ([PLAN, long], UnsupportedFeatureError, "need budgets by KV head"),
        ([short, dataclasses.replace(long, policy="h2o")], ConfigError, "one model and one policy"),
    ):
        with pytest.raises(error, match=words):
            EngineSettings.read({"plan": [plan.to_dict() for plan in plans]})
