"""Where modules compute, and whether there is room."""

from __future__ import annotations

import torch
from torch import nn

_REFUSALS = ("can't allocate memory", "out of memory", "bad_alloc", "could not create a memory")


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes; accelerate keeps offloaded weights on "meta" and moves them when they are due."""
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.device.type != "meta":
        return parameter.device
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Wait for a GPU, so that a clock read next tells the truth; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSALS)
