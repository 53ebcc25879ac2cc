"""Triton kernels, each beside its naive twin in plain torch (``naive.py``), which says what it computes.

They serve ``SqueezeCache(kernels="triton")``: on a GPU, or anywhere with ``TRITON_INTERPRET=1``. Importing this folder
needs no Triton; :func:`check` says whether the kernels can run.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import ConfigError
from ..extras import require

#: What ``SqueezeCache(kernels=...)`` takes.
CHOICES = ("torch", "triton")


def check(device: Any) -> None:
    """Raise where the kernels cannot run: :class:`MissingExtraError` without Triton, :class:`ConfigError` otherwise."""
    require("triton", "triton")
    if device.type != "cuda" and not interpreted():
        raise ConfigError(f'kernels="triton" needs a CUDA device (or TRITON_INTERPRET=1 to try it), got {device}')


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
