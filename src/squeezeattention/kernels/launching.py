"""The one place where kernels are launched: on the device of what they read, and with an error that names them."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from ..device import out_of_memory
from ..errors import KernelError


def launch(kernel: Any, grid: tuple[int, ...], *given: Any, **constants: Any) -> None:
    """``kernel[grid](*given, **constants)`` on the device of the first of ``given``, a tensor.

    Raises :class:`KernelError` if it cannot be compiled or launched.
    """
    device = given[0].device
    # Triton launches on the current device, whatever the tensors are on.
    there = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    try:
        with there:
            kernel[grid](*given, **constants)
    except Exception as error:  # of the compiler's, the assembler's and the driver's many
        if out_of_memory(error):
            raise
        name = f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}"
        said = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {said[-1].strip()}"  # where the compiler shows code, its words come last
        raise KernelError(
            f"Triton kernel {name} could not be compiled or launched on {device} ({reason}); "
            'kernels="torch" goes on without this library\'s kernels'
        ) from error
