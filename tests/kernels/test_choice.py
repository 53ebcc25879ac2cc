"""Choosing the kernels: by the device and the model, said in the cache, refused where they cannot run."""

import importlib.util

import pytest
import torch

from squeezeattention import SqueezeCache
from squeezeattention.errors import ConfigError, KernelError, MissingExtraError
from squeezeattention.kernels.choosing import Kernels, choose
from squeezeattention.kernels.launching import launch
from squeezeattention.testing import tiny_model

GPU = torch.device("cuda", 0)


def test_an_unknown_choice():
    with pytest.raises(ConfigError, match="auto, torch, triton"):
        SqueezeCache(tiny_model("llama"), kernels="fast")


def test_no_gpu(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    model = tiny_model("llama")
    with pytest.raises(ConfigError, match="CUDA"):
        SqueezeCache(model, kernels="triton")


def test_no_triton(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingExtraError, match=r"squeezeattention\[triton\]"):
        SqueezeCache(tiny_model("llama"), kernels="triton")


def test_a_processor_has_torch(tmp_path):
    """Also where the interpreter could stand in: it is there to try the kernels, not to serve."""
    model = tiny_model("llama")
    cache = SqueezeCache(model)
    assert cache.kernels == "torch"
    assert "kernels='torch'" in repr(cache)
    assert not any(layer.accelerated for layer in cache.layers)
    # Saved is what was asked for, not what one device came to.
    model(input_ids=torch.arange(3, 12)[None], past_key_values=cache)
    cache.save(tmp_path / "cache.safetensors")
    assert SqueezeCache.load(model, tmp_path / "cache.safetensors")._kernels == Kernels("auto", "torch")


def stand_in(monkeypatch, *, capability=(9, 0), triton=True, hip=None):
    """A GPU that only says what it is."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: (triton or None) and "there" if name == "triton" else find(name)
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)


@pytest.mark.parametrize(
    ("gpu", "model", "why"),
    [
        ({}, (torch.bfloat16, 128), None),
        ({"capability": (8, 0)}, (torch.float32, 256), None),
        ({}, (torch.uint8, 128), None),  # packed weights: what is computed is another matter
        ({"triton": False}, (torch.bfloat16, 128), "not installed"),
        ({"capability": (7, 5)}, (torch.float16, 128), r"8\.0.*7\.5"),
        ({"hip": "6.4"}, (torch.bfloat16, 128), "ROCm"),
        ({}, (torch.float64, 128), "float64"),
        ({}, (torch.bfloat16, 512), "512"),
    ],
    ids=str,
)
def test_a_gpu_has_triton_where_the_kernels_serve(gpu, model, why, monkeypatch):
    stand_in(monkeypatch, **gpu)
    found = choose("auto", GPU, *model)
    assert found.name == ("triton" if why is None else "torch")
    if why is None:
        assert str(found) == "triton"
    else:
        with pytest.raises(AssertionError, match=why):
            raise AssertionError(str(found))
    assert choose("torch", GPU, *model) == Kernels("torch", "torch")


def test_widths_of_latents():
    """DeepSeek's keys have two parts, and its config's head_dim is that of one."""
    from squeezeattention.hf.layout import inspect_model, widest_head

    config = tiny_model("deepseek-v3").config
    widest = widest_head(inspect_model(tiny_model("deepseek-v3")).config)
    assert widest >= config.qk_nope_head_dim + config.qk_rope_head_dim


def test_a_kernel_that_fails_is_named():
    class Failing:
        __module__, __name__ = "squeezeattention.kernels.decode", "_partial"

        def __init__(self, error):
            self.error = error

        def __getitem__(self, grid):
            def run(*given, **constants):
                raise self.error

            return run

    with pytest.raises(KernelError, match=r"decode\._partial .*out of resource.*kernels=\"torch\"") as caught:
        launch(Failing(RuntimeError("out of resource: shared memory")), (1,), torch.zeros(1))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(torch.OutOfMemoryError):  # batches are sized by it
        launch(Failing(torch.OutOfMemoryError("no room")), (1,), torch.zeros(1))


def test_the_command_line_says_it():
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from squeezeattention.cli.app import app

    asked = ["bench", "tiny", "--prompt", "16", "-n", "2", "--policy", "streaming_llm", "--allocator", "uniform"]
    assert "kernels: torch" in CliRunner().invoke(app, asked).stdout
