"""Triton kernels, each beside its naive twin in plain torch (``naive.py``), which says what it computes.

They serve ``SqueezeCache(kernels="triton")``, and ``"auto"`` where :mod:`choosing` finds that they can: on a GPU, or
anywhere with ``TRITON_INTERPRET=1``. Importing this folder needs no Triton.
"""

from __future__ import annotations

import os


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
