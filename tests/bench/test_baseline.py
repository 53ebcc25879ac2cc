"""The full cache at its best, and what is seen of a step: kernels of attention, CUDA graphs, why they were left out."""

from __future__ import annotations

import functools
import logging
from types import SimpleNamespace

import pytest
import torch
from torch._C._autograd import DeviceType
from torch._dynamo.utils import counters
from transformers import StaticCache

from squeezeattention.bench import Run, Workload, build, measure, variants_of
from squeezeattention.bench.baseline import NAME, best_attention, grouped_attention
from squeezeattention.bench.graphs import SkippedGraphs
from squeezeattention.bench.profile import attention_kernels, profile_step, read_profile
from squeezeattention.hf import compat
from squeezeattention.testing import tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def naive(query, key, value, mask, scale):
    """Softmax by hand, query head by query head."""
    batch, heads, length, _ = query.shape
    group = heads // key.shape[1]
    out = torch.empty(batch, length, heads, value.shape[-1])
    for row in range(batch):
        for head in range(heads):
            logits = query[row, head] @ key[row, head // group].T * scale
            if mask is not None:
                logits = logits.masked_fill(~mask[row if len(mask) > 1 else 0, 0], -torch.inf)
            out[row, :, head] = logits.softmax(-1) @ value[row, head // group]
    return out


@pytest.mark.parametrize("heads", [2, 3, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_heads_that_share_keys_attend_to_the_same(heads, masked):
    torch.manual_seed(heads)
    query = torch.randn(2, 6, 1, 16)
    key, value = torch.randn(2, heads, 9, 16), torch.randn(2, heads, 9, 24)
    mask = torch.tensor([[True] * 4 + [False] * 5, [True] * 7 + [False] * 2])[:, None, None] if masked else None
    module = SimpleNamespace(num_key_value_groups=6 // heads, is_causal=True)
    out, weights = grouped_attention(module, query, key, value, mask, scaling=0.3)
    assert weights is None
    torch.testing.assert_close(out, naive(query, key, value, mask, 0.3), rtol=1e-5, atol=1e-5)


def test_keys_are_not_repeated():
    """One product over the keys as they lie: no operator makes anything of their size."""
    query, key = torch.randn(1, 8, 1, 16), torch.randn(1, 2, 512, 16)
    mask = torch.ones(1, 1, 1, 512, dtype=torch.bool)
    module = SimpleNamespace(num_key_value_groups=4, is_causal=True)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            seen.extend(one.numel() for one in torch.utils._pytree.tree_leaves(out)
                        if isinstance(one, torch.Tensor) and one._base is None)  # fmt: skip
            return out

    with Watch():
        grouped_attention(module, query, key, key, mask, scaling=0.25)
    assert seen
    assert max(seen) < key.numel()


@torch.no_grad()
def test_a_static_cache_decodes_as_before():
    model = tiny_model("llama")
    ids = torch.randint(3, 101, (2, 11), generator=torch.Generator().manual_seed(0))
    logits = []
    for best in (False, True):
        cache = StaticCache(config=model.config, max_cache_len=16)
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        token = torch.tensor([[5], [9]])
        if not best:
            logits.append(model(input_ids=token, past_key_values=cache, use_cache=True).logits)
            continue
        with best_attention(model) as changed:
            assert changed
            assert model.config._attn_implementation == NAME
            logits.append(model(input_ids=token, past_key_values=cache, use_cache=True).logits)
    assert compat.implementation(model.config) == "sdpa"
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["falcon-7b", "gemma2"])
def test_models_that_attend_otherwise_are_left_alone(family):
    model = tiny_model(family, **({"attn_implementation": "eager"} if family == "gemma2" else {}))
    before = compat.raw_implementation(model.config)
    with best_attention(model) as changed:
        assert not changed
        assert compat.raw_implementation(model.config) == before


def test_kernels_are_told_by_their_names():
    operators = ["aten::scaled_dot_product_attention", "aten::_scaled_dot_product_flash_attention", "aten::bmm"]
    kernels = [
        "void pytorch_flash::flash_fwd_splitkv_kernel<pytorch_flash::Flash_fwd_kernel_traits<128>>",
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80", "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16",
        "triton_tem_fused_flex_attention_0", "_causal_sums", "_combine", "nvjet_hsh_64x8", "_partials_of_others",
    ]  # fmt: skip
    assert attention_kernels(operators, []) == ("flash_attention",)
    kinds = [attention_kernels([], [name]) for name in kernels]
    assert kinds[0] == ("flash kernel",)
    assert kinds[1] == ("efficient (CUTLASS) kernel",)
    assert "cuDNN kernel" in kinds[2]
    assert kinds[3] == ("flex kernel",)
    assert kinds[4] == kinds[5] == ("squeezeattention kernel",)
    assert kinds[6] == kinds[7] == ()


def event(name, kind=DeviceType.CPU, microseconds=1.0, parent=None):
    return SimpleNamespace(
        name=name, device_type=kind, cpu_parent=parent, time_range=SimpleNamespace(elapsed_us=lambda: microseconds)
    )


def test_launches_and_graphs_are_counted():
    outer = event("aten::linear")
    events = [
        outer, event("aten::addmm", parent=outer), event("cudaLaunchKernel"), event("cuLaunchKernelEx"),
        event("cudaLaunchKernelExC"), event("cudaGraphLaunch"), event("cudaMemcpyAsync"),
        event("cudaStreamSynchronize"),
        event("aten::_local_scalar_dense"), event("gemm", DeviceType.CUDA, 40.0), event("add", DeviceType.CUDA, 2.0),
        event("Torch-Compiled Region: 0/0", DeviceType.CUDA, 500.0),
    ]  # fmt: skip
    found = read_profile(events, CUDA)
    assert (found.launches, found.graph_replays, found.waits, found.operators) == (3, 1, 1, 2)
    assert found.device_s == pytest.approx(42e-6)


def test_a_step_on_this_processor():
    query = torch.randn(1, 4, 1, 32)

    def step():
        return torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().item()

    found = profile_step(step, CPU)
    assert found.attention == ("flash_attention_for_cpu",)
    assert (found.waits, found.launches, found.graph_replays, found.device_s) == (1, 0, 0, None)


def test_the_profiler_is_not_heard_and_others_are(capfd):
    import os

    profile_step(lambda: os.write(2, b"from a step\n"), CPU)
    assert capfd.readouterr().err == "from a step\n"


@pytest.mark.parametrize("channel", ["cudagraphs", "perf_hints"])
def test_why_graphs_were_skipped(channel):
    logger = logging.getLogger(f"torch._inductor.cudagraph_utils.__{channel}")
    before = logger.level, list(logger.handlers)
    with SkippedGraphs() as found:
        for _ in range(2):
            logger.warning("skipping cudagraphs due to mutated inputs (1 instances)")
            counters["inductor"]["cudagraph_skips"] += 1
    counters["inductor"]["cudagraph_skips"] -= 2
    assert found.count == 2
    assert found.reasons == ["skipping cudagraphs due to mutated inputs (1 instances)"]
    assert (logger.level, logger.handlers) == before


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"graph_replays": 1, "graphs_skipped": 0}, None),
        ({"graph_replays": 0, "graphs_skipped": 0}, "no reason was given"),
        ({"graph_replays": 1, "graphs_skipped": 2, "skip_reasons": ("mutated inputs",)}, "mutated inputs"),
    ],
)
def test_a_compiled_run_without_graphs_is_complained_about(given, word):
    run = Run("full, static, compiled", 1, 8, 2, compiled=True, on_gpu=True, **given)
    assert (run.complaint is None) == (word is None)
    assert word is None or word in run.complaint
    assert run.to_dict()["complaint"] == run.complaint
    assert Run("full", 1, 8, 2, compiled=False, on_gpu=True, graph_replays=0).complaint is None


def test_the_complaint_is_in_the_table(capsys):
    from squeezeattention.cli.bench import _table

    times = {"prefill_s": 1.0, "step_s": 0.1, "kv_bytes": 8, "kv_peak_bytes": 8, "weight_bytes": 8}
    bad = Run("full, static", 1, 8, 2, compiled=True, on_gpu=True, graph_replays=0, graphs_skipped=1, **times)
    cells = list(_table([bad], 1, 1e9).columns[0].cells)
    assert "no CUDA graphs" in str(cells[0])


def test_a_compiled_full_cache_is_measured(monkeypatch):
    monkeypatch.setattr(
        torch, "compile", functools.partial(torch.compile, backend="eager")
    )  # traced whole all the same
    model = build("tiny", layers=1)
    variants = [variant for variant in variants_of([], [], compiled=True) if variant.compiled]
    (run,) = (measure(model, variant, Workload(2, 20, 2)) for variant in variants)
    assert run.failed is None
    assert run.attention == ("flash_attention_for_cpu",)
    assert run.compiled
    assert run.complaint is None  # no graphs on a CPU
