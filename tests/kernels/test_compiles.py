"""Every kernel compiles for GPUs that are not here, as a launch would compile it: types, flags, sizes.

The interpreter, under which the other tests run, does not type loops and knows nothing of shared memory or registers. A
process for each target, this file as its program, launches the kernels through their wrappers with a driver that only
names the target, and tells in lines of JSON what became of them. Triton's wheel brings the assembler.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

#: A100, H100.
TARGETS = (80, 90)
DTYPES = ("bfloat16", "float16", "float32")
ALL = ("mask", "softcap", "sinks", "scores", "victim")
#: Groups, and what is asked for beside the output.
OPTIONS = (
    (1, ()),
    (4, ("mask",)),
    (7, ("softcap", "sinks")),
    (8, ("scores",)),
    (4, ("mask", "scores", "victim")),
    (7, ALL),
)
#: For the other types, and for other widths: the least and the most.
FEW = (OPTIONS[0], OPTIONS[-1])
#: Kernels that others call: they are no programs of their own.
PARTS = {"decode._capped", "sums._masses"}
#: Of keys and values; the last are MLA's latents, as wide as a block of 16 slots allows.
WIDTHS = ((128, 128), (80, 64), (256, 256), (576, 512))


class Compiling:
    """Stands in for a kernel: a launch compiles it."""

    def __init__(self, kernel, told):
        self.kernel, self.told = kernel, told

    def __getitem__(self, grid):
        def launch(*given, **constants):
            about = dict(self.told, kernel=f"{self.kernel.__module__.rpartition('.')[2]}.{self.kernel.__name__}")
            began = time.perf_counter()
            try:
                made = self.kernel.warmup(*given, grid=grid, **constants)
                about |= {
                    "shared": made.metadata.shared,
                    "warps": made.metadata.num_warps,
                    **self.resources(made.asm),
                    "error": None,
                }
            except Exception as error:  # of the compiler's many
                about["error"] = f"{type(error).__name__}: {error}"
            about["seconds"] = round(time.perf_counter() - began, 2)
            print(json.dumps(about), flush=True)

        return launch

    def resources(self, made):
        """What the machine code needs, as NVIDIA's tool reads it, and whether products use the tensor cores."""
        import triton

        found = {"tensor_cores": bool(re.search(r"\b(mma\.sync|wgmma\.mma_async)", made["ptx"]))}
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if tool.exists():
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(made["cubin"])
                file.flush()
                command = [tool, "-res-usage", file.name]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found |= {name.lower(): int(re.search(rf"{name}:(\d+)", said)[1]) for name in ("REG", "STACK", "LOCAL")}
        return found


def launch_all(capability):
    """Call each wrapper as often as it takes for all of its kernels' variants."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    from squeezeattention.kernels import decode, mass, ragged, sums

    target = GPUTarget("cuda", capability, 32)
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target
        )
    )
    told = {}
    for module in (decode, mass, ragged, sums):
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, JITFunction) and f"{kernel.__module__.rpartition('.')[2]}.{name}" not in PARTS:
                setattr(module, name, Compiling(kernel, told))
    cases = [("bfloat16", WIDTHS[0], *one) for one in OPTIONS]
    cases += [(dtype, WIDTHS[0], *one) for dtype in DTYPES[1:] for one in FEW]
    cases += [("bfloat16", widths, *OPTIONS[-1]) for widths in WIDTHS[1:]]
    for dtype, widths, group, asked in cases:
        told |= {"dtype": dtype, "widths": widths, "group": group, "asked": asked}
        decode_step(decode.decode_attention, getattr(torch, dtype), widths, group, asked)
        ragged_step(ragged.ragged_decode_attention, getattr(torch, dtype), widths, group, asked)
        if (group, asked) in FEW and widths[0] <= 256:
            prefill(mass.attention_mass, getattr(torch, dtype), widths[0], group, asked)
        if (group, asked) == FEW[-1] and widths[0] <= 256:  # it has no options
            causal_prefill(sums.causal_sums, getattr(torch, dtype), widths[0], group)


def common(group, heads, asked):
    import torch

    return {
        "softcap": 30.0 if "softcap" in asked else None,
        "sink_logits": torch.zeros(heads * group, dtype=torch.bfloat16) if "sinks" in asked else None,
    }


def decode_step(kernel, dtype, widths, group, asked, heads=2, tokens=333):
    import torch

    keys, values = (torch.zeros(2, heads, tokens, width, dtype=dtype) for width in widths)
    positions = torch.zeros(2, heads, tokens, dtype=torch.int64)
    more = {}
    if "scores" in asked:
        more["scores"] = torch.zeros(2, heads, tokens)
    if "victim" in asked:
        more |= {"positions": positions, "newest": torch.zeros(2, dtype=torch.int64), "recent": 9}
    visible = positions >= 0 if "mask" in asked else None
    query = keys.new_zeros(2, heads * group, widths[0])
    kernel(query, keys, values, visible, 0.1, **common(group, heads, asked), **more)


def ragged_step(kernel, dtype, widths, group, asked, heads=2, tokens=3333):
    import torch

    keys, values = (torch.zeros(tokens, width, dtype=dtype) for width in widths)
    units, at = torch.zeros(2 * heads, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    more = {}
    if "mask" in asked or "victim" in asked:
        positions = torch.zeros(tokens, dtype=torch.int64)
        more |= {"positions": positions, "query_positions": at, "window": 99 if "softcap" in asked else None}
    if "scores" in asked:
        more["scores"] = torch.zeros(tokens)
    if "victim" in asked:
        more["recent"] = units
    # A largest unit of two splits or more: a number that is 1 becomes a constant, which hides much.
    query = keys.new_zeros(2 * heads, group, widths[0])
    kernel(query, keys, values, units, units, 2999, heads, 0.1, **common(group, heads, asked), **more)


def prefill(kernel, dtype, width, group, asked, heads=2, length=300, tokens=333):
    import torch

    keys = torch.zeros(2, heads, tokens, width, dtype=dtype)
    at, held = torch.zeros(2, length, dtype=torch.int64), torch.zeros(2, heads, tokens, dtype=torch.int64)
    query = keys.new_zeros(2, heads * group, length, width)
    kernel(query, keys, at, held, 99 if "mask" in asked else None, 0.1, **common(group, heads, asked))


def causal_prefill(kernel, dtype, width, group, heads=2, length=300, tokens=333):
    import torch

    keys = torch.zeros(2, heads, tokens, width, dtype=dtype)
    query = keys.new_zeros(2, heads * group, length, width)
    kernel(query, keys, torch.zeros(2, heads * group, length), 0.1)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """{target: what was told of each launch}."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    running = {
        target: subprocess.Popen(
            [sys.executable, __file__, str(target)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for target in TARGETS
    }
    said = {target: process.communicate() for target, process in running.items()}
    for target, process in running.items():
        assert process.returncode == 0, said[target][1][-4000:]
    return {target: [json.loads(line) for line in out.splitlines()] for target, (out, _) in said.items()}


@pytest.mark.parametrize("target", TARGETS)
def test_all_compile(compiled, target):
    import squeezeattention.kernels

    assert [one for one in compiled[target] if one["error"]] == []
    # None was forgotten.
    folder = Path(squeezeattention.kernels.__file__).parent
    written = {
        f"{file.stem}.{name}"
        for file in folder.glob("*.py")
        for name in re.findall(r"^@triton\.jit.*\ndef (\w+)", file.read_text(), re.MULTILINE)
    }
    assert {one["kernel"] for one in compiled[target]} == written - PARTS


@pytest.mark.parametrize("target", TARGETS)
def test_products_of_halves_use_the_tensor_cores(compiled, target):
    for one in compiled[target]:
        product = not one["kernel"].endswith("_combine")
        # Products of fp32 are exact: its cores would round to tf32.
        assert one["tensor_cores"] == (product and one["dtype"] != "float32"), one


@pytest.mark.parametrize("target", TARGETS)
def test_what_they_need(compiled, target):
    """Registers suffice, and shared memory does on smaller GPUs of these generations too."""
    for one in compiled[target]:
        usual = max(one["widths"]) <= 256
        if "stack" in one and usual:
            assert one["stack"] + one["local"] <= (1024 if one["dtype"] == "float32" else 64), one
        assert one["shared"] <= (99 if usual else 160) * 1024, one


@pytest.mark.parametrize("target", TARGETS)
def test_sums_of_halves_keep_a_multiprocessor_busy(compiled, target):
    """Nothing is spilled, and programs fit side by side: registers (65,536) and shared memory (164 KB, 228 KB)."""
    room = {80: 164, 90: 228}[target] * 1024
    found = [one for one in compiled[target] if one["kernel"] == "sums._causal_sums" and one["dtype"] != "float32"]
    assert {one["widths"][0] for one in found} == {128, 80, 256}
    for one in found:
        programs = 3 if one["widths"][0] <= 128 else 2
        assert programs * (one["shared"] + 1024) <= room, one
        if "reg" in one:
            assert one["stack"] + one["local"] == 0, one
            assert programs * 32 * one["warps"] * -(-one["reg"] // 8) * 8 <= 65536, one


if __name__ == "__main__":
    launch_all(int(sys.argv[1]))
