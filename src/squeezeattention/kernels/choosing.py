"""Who computes attention: this library's Triton kernels or plain torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

from ..errors import ConfigError
from ..extras import require
from . import interpreted

#: What ``SqueezeCache(kernels=...)`` takes.
CHOICES = ("auto", "torch", "triton")
#: What the kernels read; they add up in fp32.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Widest heads for which "auto" takes the kernels: the tests see to it that these fit the GPUs of ``_CAPABILITY`` on.
WIDEST = 256
#: A100: the oldest generation that the kernels are compiled for in the tests.
_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Kernels:
    """What was asked for, what it came to, and why, if that is not plain."""

    asked: str
    name: str
    """"torch" or "triton"."""
    why: str | None = None
    """Why "auto" came to torch on a GPU."""

    @property
    def accelerated(self) -> bool:
        return self.name == "triton"

    def __str__(self) -> str:
        return self.name if self.why is None else f"{self.name}: {self.why}"


def checked(kernels: str) -> str:
    """``kernels`` itself; :class:`ConfigError` unless it is one of :data:`CHOICES`."""
    if kernels not in CHOICES:
        raise ConfigError(f"kernels must be one of {', '.join(CHOICES)}, got {kernels!r}")
    return kernels


def choose(kernels: str, device: torch.device, dtype: torch.dtype | None = None, width: int = 0) -> Kernels:
    """Who computes for a model on ``device`` in ``dtype`` whose widest head has ``width`` numbers.

    "auto" is Triton wherever the kernels are known to serve, torch elsewhere. "triton" raises where they cannot:
    :class:`MissingExtraError` without Triton, :class:`ConfigError` otherwise.
    """
    checked(kernels)
    if kernels == "triton":
        require("triton", "triton")
        if device.type != "cuda" and not interpreted():
            raise ConfigError(
                f'kernels="triton" needs a CUDA device (or TRITON_INTERPRET=1 to try it), got {device}; "auto" takes '
                "torch there"
            )
        if dtype == torch.float64:
            raise ConfigError('kernels="triton" computes in fp32, bf16 and fp16, got a model in float64; use "torch"')
        return Kernels(kernels, "triton")
    if kernels == "torch" or device.type != "cuda":
        return Kernels(kernels, "torch")
    why = _why_not(device, dtype, width)
    return Kernels(kernels, "triton") if why is None else Kernels(kernels, "torch", why)


def _why_not(device: torch.device, dtype: torch.dtype | None, width: int) -> str | None:
    """What keeps the kernels from a CUDA device."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.version.hip is not None:
        return "the kernels are not known to serve on ROCm"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        return "the kernels are not known to serve on GPUs before compute capability 8.0, this is {}.{}".format(
            *capability
        )
    if dtype is not None and dtype.is_floating_point and dtype not in DTYPES:
        return f"the kernels do not compute in {str(dtype).removeprefix('torch.')}"
    if width > WIDEST:
        return f"heads of {width} numbers are wider than {WIDEST}"
    return None
