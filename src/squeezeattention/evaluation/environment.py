"""Where a run took place and which model it was of: what a result needs to be believed, or repeated."""

from __future__ import annotations

import hashlib
import os
import platform
from typing import Any

import torch
import transformers
from torch import nn

from .. import __version__

_PROBES = 256  # values of each weight that go into the fingerprint


def environment() -> dict[str, Any]:
    """Versions and hardware, as JSON values."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "squeezeattention": __version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def describe_model(model: nn.Module) -> dict[str, Any]:
    """A model's class, size, dtype, device and :func:`fingerprint`, as JSON values."""
    first = next(model.parameters())
    return {
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(first.dtype).removeprefix("torch."),
        "device": first.device.type,
        "fingerprint": fingerprint(model),
    }


def fingerprint(model: nn.Module) -> str:
    """A hash of names, shapes and evenly spaced values of all weights: other weights, another fingerprint."""
    found = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        probes = flat[:: max(1, flat.numel() // _PROBES)].float().cpu()
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        found.update(probes.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
