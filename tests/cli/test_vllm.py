"""``squeeze vllm plan`` and ``squeeze serve`` without vLLM: plans in blocks, forecasts, refusals."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest

from squeezeattention import BudgetPlan
from squeezeattention.engine import BlockPlan, EngineSettings
from squeezeattention.engine import serving as serving
from squeezeattention.engine.serving import server_command

from ..conftest import refused

PLAN = ["vllm", "plan", "embedded"]
TEXTS = ["-t", "recall", "--length", "300", "--samples", "2"]


def test_a_plan_in_blocks(squeeze, tmp_path):
    path = tmp_path / "plan.json"
    more = ("--budget", "128", "--block-size", "16", "--memory", "16MiB", "--kv-dtype", "float32", "-o", path, "--json")
    result = squeeze(*PLAN, *TEXTS, *more)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    plan, forecast = BudgetPlan.load(path), told["forecast"]
    assert plan.to_dict() == told["plan"]
    assert all(budget % 16 == 0 for budget in plan.budgets)
    assert plan.total <= 8 * 128
    assert len(set(plan.budgets)) <= 4
    blocks = EngineSettings.read(str(path)).blocks(16, 8)
    assert blocks.tokens == plan.budgets
    assert [layer["sink_blocks"] for layer in forecast["layers"]] == [1] * 8
    pool_block = 16 * forecast["layers_per_group"] * 2 * 2 * 32 * 4
    assert forecast["bytes_per_sequence"] == forecast["blocks_per_sequence"] * pool_block
    assert forecast["bytes_per_sequence"] >= sum(plan.budgets) * 2 * 2 * 32 * 4
    assert forecast["max_num_seqs"] == (16 * 2**20 // pool_block - 1) // forecast["blocks_per_sequence"]


def test_what_is_printed_can_be_run(squeeze, tmp_path):
    path = tmp_path / "plan.json"
    result = squeeze(*[*PLAN, "-p", "def area(x):\n    return x\n" * 40, "--budget", "96", "-o", str(path)])
    assert result.exit_code == 0, result.stderr
    assert f"squeeze serve embedded --plan {path} --block-size 16" in result.stdout
    assert "blocks per sequence" in result.stdout


def test_a_plan_made_before(squeeze, tmp_path):
    """Layers below a block are given one, at the cost of the largest."""
    given, path = tmp_path / "given.json", tmp_path / "plan.json"
    BudgetPlan.from_budgets([4, 400, 30, 40, 50, 60, 20, 100]).save(given)
    result = squeeze(*[*PLAN, "--allocator", str(given), "--levels", "8", "--block-size", "32", "-o", str(path)])
    assert result.exit_code == 0, result.stderr
    plan = BudgetPlan.load(path)
    assert plan.total == sum([4, 400, 30, 40, 50, 60, 20, 100]) // 32 * 32
    assert min(plan.budgets) == 64  # sinks' block and one of the newest
    assert BlockPlan.of(plan, 32, sinks=4).tokens == plan.budgets


def test_a_server_that_divides_the_total_for_each_prompt(squeeze, tmp_path):
    path = tmp_path / "plan.json"
    more = ("--budget", "117", "--block-size", "16", "--per-prompt", "--memory", "4MiB", "-o", path)
    told = json.loads(squeeze(*PLAN, *TEXTS, *more, "--json").stdout)
    planner = EngineSettings.read({"plan": str(path), "per_prompt": True}).planner(16)
    assert told["per_prompt"] == [list(layers) for layers in planner.members] == [[n] for n in planner_order(path)]
    assert told["forecast"]["blocks_per_sequence"] == planner.blocks_per_sequence
    shown = squeeze(*PLAN, *TEXTS, *more)
    assert shown.exit_code == 0, shown.stderr
    assert "--per-prompt" in shown.stdout
    assert "go together" in shown.stdout


def test_a_pool_for_each_prompt(squeeze, tmp_path):
    """With probe all blocks go to whichever KV heads look back: the total is what is foreseen."""
    path = tmp_path / "plan.json"
    more = ("--budget", "96", "--block-size", "32", "--per-prompt", "--allocator", "probe", "-o", path)
    result = squeeze(*PLAN, *TEXTS, *more, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    settings = EngineSettings.read({"plan": str(path), "per_prompt": True})
    assert (settings.design, settings.per_prompt.allocator, settings.by_head) == ("slab", "probe", True)
    pool = settings.head_planner(32)
    assert pool.base_budget == 96
    assert told["forecast"]["blocks_per_sequence"] == pool.blocks == 24
    shown = squeeze(*PLAN, *TEXTS, *more)
    assert shown.exit_code == 0, shown.stderr
    assert "Divided among all KV heads" in shown.stdout
    assert "--per-prompt" in shown.stdout


def planner_order(path):
    """Layers by what attention changed there, most first."""
    signal_values = BudgetPlan.load(path).signal_values
    return sorted(range(len(signal_values)), key=signal_values.__getitem__)


def test_single_tokens_need_no_sink_blocks(squeeze, tmp_path):
    path = tmp_path / "plan.json"
    result = squeeze(*PLAN, *TEXTS, "--policy", "h2o", "--budget", "64", "--block-size", "32", "-o", path, "--json")
    assert result.exit_code == 0, result.stderr
    assert {layer["sink_blocks"] for layer in json.loads(result.stdout)["forecast"]["layers"]} == {0}
    settings = EngineSettings.read(str(path))
    assert (settings.design, settings.policy) == ("slab", "h2o")
    for more in ([], ["--no-enable-prefix-caching"]):  # h2o would need the sums of queries that are not run
        command = server_command("embedded", settings, block_size=32, more=more)
        assert command.count("--no-enable-prefix-caching") == 1
    command = server_command("embedded", replace(settings, policy="tova"), block_size=32)
    assert "--no-enable-prefix-caching" not in command


@pytest.mark.parametrize("policy", ["streaming_llm", "h2o"])
def test_budgets_of_heads_are_kept(squeeze, tmp_path, policy):
    """As the engine reads them again; without being asked to where tokens are single anyway."""
    path = tmp_path / "plan.json"
    more = (
        "--policy",
        policy,
        "--allocator",
        "calibrated",
        "--budget",
        "96",
        "--block-size",
        "32",
        "-o",
        path,
        "--json",
    )
    asked = ("--by-head",) if policy == "streaming_llm" else ()
    result = squeeze(*PLAN, *TEXTS, *more, *asked)
    assert result.exit_code == 0, result.stderr
    plan, forecast = BudgetPlan.load(path), json.loads(result.stdout)["forecast"]
    assert plan.head_budgets is not None
    assert len({heads for layer in plan.head_budgets for heads in layer}) > 2
    assert sum(map(sum, plan.head_budgets)) == 8 * 96 * 2
    settings = EngineSettings.read(str(path))
    assert (settings.design, settings.policy) == ("slab", policy)
    blocks = settings.blocks(32, 8, 2)
    assert settings.rooms(blocks, 2) == plan.head_budgets
    assert forecast["bytes_per_sequence"] == 8 * 96 * 2 * 2 * 32 * 2  # nothing is padded
    shown = squeeze(*PLAN, *TEXTS, *more[:-1], *asked)
    assert "Tokens of each KV head" in shown.stdout
    averaged = squeeze(*PLAN, *TEXTS, *more[:-1], "--by-layer")
    assert averaged.exit_code == 0, averaged.stderr
    assert BudgetPlan.load(path).head_budgets is None


def test_whole_blocks_are_of_all_heads(squeeze, tmp_path):
    path = tmp_path / "plan.json"
    result = squeeze(*PLAN, *TEXTS, "--allocator", "calibrated", "--budget", "96", "-o", path)
    assert "--by-head keeps them" in result.stderr
    assert BudgetPlan.load(path).head_budgets is None
    refused(squeeze(*PLAN, *TEXTS, "--allocator", "squeeze", "--by-head"), "--by-head", "squeeze", "calibrated")


@pytest.mark.parametrize("given", ["option", "variable"])
def test_a_key_is_no_argument_of_the_server(squeeze, tmp_path, monkeypatch, given):
    """Whoever lists processes would see it there; vLLM reads it from the environment."""
    BudgetPlan.from_budgets([64] * 8).save(tmp_path / "plan.json")
    monkeypatch.setattr(serving, "find_spec", lambda name: True)
    started = []

    class Server:
        def __init__(self, command, env, **how):
            started.append((command, env))

        def wait(self, timeout=None):
            return 0

        def poll(self):
            return 0

    monkeypatch.setattr(serving.subprocess, "Popen", Server)
    words = ("--api-key", "s3cret") if given == "option" else ()
    if given == "variable":
        monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    result = squeeze("serve", "embedded", "--plan", tmp_path / "plan.json", *words)
    assert result.exit_code == 0, (result.stderr, result.exception)
    ((command, environment),) = started
    assert environment["VLLM_API_KEY"] == "s3cret"
    assert not any("s3cret" in word for word in command)
    assert "s3cret" not in result.stdout + result.stderr
    refused(squeeze("serve", "embedded", "--plan", tmp_path / "plan.json", "--", "--api_key=s"), "give it before --")


def test_windows_for_tensorrt_llm(squeeze, tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "options.yaml"
    result = squeeze(*PLAN, *TEXTS, "--policy", "sliding_window", "--budget", "64", "-o", plan)
    assert result.exit_code == 0, result.stderr
    told = squeeze("export", "tensorrt-llm", plan)
    want = {"kv_cache_config": {"max_attention_window": list(BudgetPlan.load(plan).budgets)}}
    assert json.loads(told.stdout) == want
    assert squeeze("export", "tensorrt-llm", plan, "-o", out).exit_code == 0
    assert json.loads(out.read_text()) == want
    assert squeeze(*PLAN, *TEXTS, "--budget", "64", "-o", plan).exit_code == 0
    refused(squeeze("export", "tensorrt-llm", plan), "sliding_window", "streaming_llm")


def test_refusals(squeeze, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "find_spec", lambda name: object())  # what is missing first is told elsewhere
    good = tmp_path / "good.json"
    BudgetPlan.from_budgets([64] * 8).save(good)
    for words, said in (
        ([*PLAN, *TEXTS, "--policy", "newest"], ("newest", "h2o")),
        ([*PLAN, *TEXTS, "--policy", "h2o", "--sinks", "4"], ("--sinks", "h2o")),
        ([*PLAN, *TEXTS, "--kv-dtype", "int3"], ("--kv-dtype", "int3")),
        ([*PLAN, *TEXTS, "--memory", "12"], ("--memory", "8GiB")),
        ([*PLAN, *TEXTS, "--budget", "8", "--block-size", "64"], ("block of 64", "--budget")),
        ([*PLAN, *TEXTS, "-o", str(tmp_path / "no" / "plan.json")], ("cannot write",)),
        ([*PLAN, *TEXTS, "--per-prompt", "--allocator", "zigzag"], ("'zigzag'", "follow the cosine")),
        ([*PLAN, *TEXTS, "--per-prompt", "--policy", "h2o"], ("compact design",)),
        (["vllm", "plan", "./nowhere", "--allocator", str(good)], ("no such folder",)),
        (["vllm", "plan", str(tmp_path), "--allocator", str(good)], ("cannot load the model",)),
        (["serve", "embedded", "--plan", str(good), "--groups", "3"], ("--groups", "--per-prompt")),
        (["serve", "embedded", "--plan", str(good), "--allocator", "probe"], ("--allocator", "--per-prompt")),
        (
            ["serve", "embedded", "--plan", str(good), "--per-prompt", "--groups", "7"],
            ("7 groups of 8 layers", "1, 2, 4"),
        ),
        (["serve", "embedded", "--plan", str(tmp_path / "none.json")], ("none.json",)),
    ):
        refused(squeeze(*words), *said)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_serving_without_vllm_names_the_extra(squeeze, tmp_path):
    path = tmp_path / "plan.json"
    BudgetPlan.from_budgets([64] * 8).save(path)
    for plan in (path, tmp_path / "none.json"):  # before anything else is looked at
        result = squeeze(*["serve", "embedded", "--plan", str(plan)])
        assert result.exit_code == 2
        assert "'vllm' extra" in result.stderr
