"""What MODEL may be beside a folder and a name on the hub: models that have a name here, and GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import embedded, smollm2
from .gguf_models import gguf_config, gguf_folder, load_gguf

if TYPE_CHECKING:
    import torch

Say = Callable[[str], object]


def gguf_of(name: str) -> Path | None:
    """The GGUF file that a name stands for, there or not; ``None`` if it stands for none."""
    if name == smollm2.NAME:
        return smollm2.smollm2_file()
    path = Path(name)
    return path if path.suffix.lower() == ".gguf" and not path.is_dir() else None


def is_named(name: str) -> bool:
    """Whether :func:`load_named` is for it. Raises :class:`MissingExtraError` if it is, and needs a package."""
    return name == embedded.NAME or gguf_of(name) is not None


def load_named(name: str, dtype: torch.dtype | None, *, warn: Say, tell: Say) -> tuple[Any, Any] | None:
    """``(model, tokenizer)`` on the CPU, in fp32 if no dtype is given; ``None`` if transformers has to know the name.

    Raises what :func:`~squeezeattention.gguf_models.load_gguf` and :func:`~squeezeattention.smollm2.load_smollm2` do.
    """
    if name == embedded.NAME:
        return embedded.load_embedded(dtype)
    file = gguf_of(name)
    return None if file is None else load_gguf(file, dtype, warn=warn, tell=tell)


def named_config(name: str) -> Any | None:
    """The config, without the weights; else as :func:`load_named`."""
    if name == embedded.NAME:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(embedded.FOLDER)
    file = gguf_of(name)
    return None if file is None else gguf_config(file)


def named_folder(name: str, *, warn: Say, tell: Say) -> Path | None:
    """The folder of the model, for programs that load it themselves; else as :func:`load_named`."""
    if name == embedded.NAME:
        return embedded.FOLDER
    file = gguf_of(name)
    return None if file is None else gguf_folder(file, warn=warn, tell=tell)
