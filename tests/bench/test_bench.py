"""What ``squeeze bench`` measures: bytes that can be counted by hand, searches, memory that runs out."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from squeezeattention.bench import (
    SHAPES,
    Run,
    Workload,
    build,
    largest_batch,
    measure,
    measure_bandwidth,
    medians,
    memory_limit,
    step_weight_bytes,
    variants_of,
)
from squeezeattention.bench.variants import Variant
from squeezeattention.cli.app import app
from squeezeattention.device import out_of_memory
from squeezeattention.errors import UnknownNameError

#: Billions of parameters, as published.
PUBLISHED = {
    "mistral-7b": 7.24, "llama2-7b": 6.74, "llama2-70b": 68.98, "mixtral-8x7b": 46.7, "falcon-7b": 6.92,
    "opt-6.7b": 6.66, "gpt-neox-20b": 20.55, "llama3-8b": 8.03, "qwen3-8b": 8.19,
}  # fmt: skip
#: KiB of keys and values a token in 16 bits: 2 * layers * KV heads * head width * 2.
KV_KIB = {
    "mistral-7b": 128, "llama2-7b": 512, "llama2-70b": 320, "mixtral-8x7b": 128, "falcon-7b": 8, "opt-6.7b": 512,
    "gpt-neox-20b": 1056, "llama3-8b": 128, "qwen3-8b": 144,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return build("tiny", layers=2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_sizes(name):
    model = build(name, device="meta", dtype=torch.bfloat16)
    learned = sum(
        module.weight.numel()
        for module in model.modules()
        if type(module).__name__ == "OPTLearnedPositionalEmbedding"  # as many positions as a bench may want
    )
    parameters = sum(parameter.numel() for parameter in model.parameters()) - learned
    assert parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.005)
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    heads = 1 if getattr(config, "multi_query", False) else heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert 2 * config.num_hidden_layers * heads * width * 2 / 1024 == KV_KIB[name]


def test_all_shapes_are_known():
    assert set(SHAPES) == {*PUBLISHED, "small", "tiny"}
    with pytest.raises(UnknownNameError, match="mistral-7b"):
        build("mistral-7")


@pytest.mark.parametrize("name", ["falcon-7b", "opt-6.7b", "gpt-neox-20b", "mixtral-8x7b", "qwen3-8b"])
def test_every_kind_of_shape_can_be_measured(name):
    config = SHAPES.create(name)
    small = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64,
             "intermediate_size": 64, "ffn_dim": 64, "word_embed_proj_dim": 128, "num_key_value_heads": 2,
             "head_dim": 32, "max_position_embeddings": 64}  # fmt: skip
    for key, value in small.items():
        if hasattr(config, key) and not isinstance(getattr(type(config), key, None), property):
            setattr(config, key, value)
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    run = measure(model, Variant("h2o", "h2o"), Workload(2, 20, 3))
    assert run.failed is None
    assert run.step_s > 0


@pytest.mark.parametrize("variant", variants_of(["streaming_llm", "h2o"], ["uniform", "squeeze"]), ids=lambda v: v.name)
def test_bytes_are_those_of_the_storages(model, variant):
    run = measure(model, variant, Workload(3, 40, 5))
    token = 3 * 2 * 2 * 2 * 64 * 4  # sequences, layers, keys and values, KV heads, width, fp32
    kept = 8 if variant.policy else 40 + 5 + 3
    assert run.kv_bytes == kept * token
    assert run.kv_peak_bytes == (40 * token if variant.policy else run.kv_bytes)
    assert run.bytes_per_s() == pytest.approx((run.weight_bytes + run.kv_bytes) / run.step_s)
    assert run.tokens_per_s == pytest.approx(3 / run.step_s)
    assert run.whole_tokens_per_s == pytest.approx(15 / (run.prefill_s + 5 * run.step_s))


def test_weights_that_a_step_reads(model):
    every = sum(parameter.nbytes for parameter in model.parameters())
    assert step_weight_bytes(model, 1) == every - model.get_input_embeddings().weight.nbytes
    mixture = build("mixtral-8x7b", layers=1, device="meta")
    experts = sum(p.nbytes for name, p in mixture.named_parameters() if ".experts." in name)
    one, many = step_weight_bytes(mixture, 1), step_weight_bytes(mixture, 1000)
    assert many - one == pytest.approx(experts * 6 / 8, rel=1e-6)


def test_memory_that_runs_out_is_a_row(model):
    run = measure(model, variants_of([], [])[0], Workload(512, 256, 2), memory=64 * 2**20)
    assert run.failed == "out of memory"
    assert run.step_s is run.kv_bytes is run.tokens_per_s is run.whole_tokens_per_s is None
    assert measure(model, variants_of([], [])[0], Workload(1, 16, 2)).failed is None


def test_the_limit_ends_with_its_block():
    device = torch.device("cpu")
    with memory_limit(device, 32 * 2**20), pytest.raises(RuntimeError) as caught:
        torch.ones(64 * 2**20)
    assert out_of_memory(caught.value)
    torch.ones(64 * 2**20)
    assert not out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize("room", [0, 1, 2, 3, 7, 31, 32, 33, 100, 1000])
def test_the_search_ends_close_to_the_largest_batch(room):
    tried = []

    def attempt(batch):
        tried.append(batch)
        return Run("x", batch, 1, 1, failed=None if batch <= room else "out of memory", step_s=1.0)

    runs = largest_batch(attempt, start=2, most=512)
    best = max((run.batch for run in runs if run.failed is None), default=0)
    assert len(set(tried)) == len(tried)
    reachable = min(room, 512)
    assert reachable - best <= max(1, best // 8)
    assert best <= reachable


def test_medians_of_rounds():
    runs = [Run("a", 1, 1, 1, prefill_s=t, step_s=t, warm_up_s=t, grown_bytes=int(t)) for t in (3.0, 1.0, 2.0)]
    (one,) = medians(runs)
    assert (one.prefill_s, one.step_s, one.grown_bytes) == (2.0, 2.0, 3)
    assert medians([*runs, Run("a", 1, 1, 1, failed="out of memory")])[0].failed == "out of memory"


def test_bandwidth_is_a_rate_of_this_machine():
    found = measure_bandwidth(torch.device("cpu"), rounds=3)
    assert 1e8 < found.bytes_per_s < 1e13


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_the_command(tmp_path):
    record, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    sizes = ("--layers", 2, "--batch", 1, "--batch", 2, "--prompt", 24, "-n", 2, "--rounds", 2)
    result = run("tiny", *sizes, "--policy", "h2o", "-o", record, "--plot", plot)
    assert result.exit_code == 0, result.output
    for word in ("batch 1", "batch 2", "h2o, probe", "GB/s measured", "2 layers"):
        assert word in result.output
    written = json.loads(record.read_text())
    assert len(written["runs"]) == 2 * 2 * 3
    for one in written["runs"]:
        assert one["of_bound"] == pytest.approx(one["bytes_per_s"] / written["bandwidth"]["bytes_per_s"])
        assert one["attention"] == (["flash_attention_for_cpu"] if one["variant"] == "full" else [])
    assert "attention of a step by matrix products: h2o, uniform; h2o, probe" in result.output
    assert written["bandwidth"]["bytes_per_s"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_command_finds_the_largest_batch():
    result = run("tiny", "--layers", 1, "--prompt", 64, "-n", 1, "--policy", "streaming_llm", "--allocator", "uniform",
                 "--largest-batch", "--memory", "32MiB", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    runs = json.loads(result.stdout)["runs"]
    for name in ("full", "streaming_llm, uniform"):
        own = [run for run in runs if run["variant"] == name]
        assert any(run["failed"] for run in own)
        assert any(not run["failed"] for run in own)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["huge-9000b"], "huge-9000b"),
        (["tiny", "--budget", "1.5"], "1.5"),
        (["tiny", "--policy", "best"], "best"),
        (["tiny", "--allocator", "fair"], "fair"),
        (["tiny", "--memory", "0.5"], "unit"),
        (["tiny", "--memory", "lots"], "lots"),
        (["tiny", "--prefill", "fast"], "fast"),
        (["tiny", "--kernels", "hand-made"], "hand-made"),
        (["tiny", "--dtype", "int3"], "int3"),
        (["tiny", "--device", "abacus"], "abacus"),
        (["embedded", "--layers", "2"], "shapes"),
        (["tiny", "--plot", "no/such/folder.png"], "no folder"),
    ],
)
def test_mistakes(arguments, word):
    result = run(*arguments)
    assert result.exit_code == 2
    assert word in result.stderr
