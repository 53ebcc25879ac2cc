"""``load_gguf``: a model from a GGUF file, unpacked when it is first used and kept for the next time."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError, ConversionWarning, InputError
from ..loading import first_line, telling
from .convert import convert, read_config
from .file import checked_file, key_of
from .store import Kept

if TYPE_CHECKING:
    import torch

Say = Callable[[str], object]
Made = tuple[Any, Any, list[str]]
_Of = TypeVar("_Of")
_LOG = logging.getLogger(__name__)
_HINT = " (transformers reads many GGUF files, not all: the original model will do, as a folder)"
_ELSEWHERE = "set SQUEEZE_CACHE_HOME to a folder that can be written, with 4 bytes free for each parameter"


def _warn(text: str) -> None:
    warnings.warn(text, ConversionWarning, stacklevel=4)


def load_gguf(
    path: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    *,
    warn: Say = _warn,
    tell: Say = _LOG.info,
) -> tuple[Any, Any]:
    """``(model, tokenizer)`` of a GGUF file: a plain model in evaluation mode on the CPU, never the packed weights.

    The file is unpacked once, into the user's cache (``$SQUEEZE_CACHE_HOME``, else ``$XDG_CACHE_HOME``, else
    ``~/.cache``), which takes 4 bytes a parameter and some seconds; after that it loads as any model does. Nothing is
    downloaded.

    Args:
        path: the file.
        dtype: of the weights; fp32 if not given, or "auto".
        warn: hears what is wrong though the model can be used; a :class:`ConversionWarning` if not given.
        tell: hears that a file is unpacked; a line in the log if not given.

    Raises:
        InputError: no such file, no GGUF file, or one that transformers cannot read.
        MissingExtraError: ``gguf`` or ``accelerate`` is not installed, and the file was not unpacked yet.
        UnsupportedFeatureError: the installed transformers reads GGUF files wrongly (before 5.17).
        ConfigError: the dtype is none of floating point.
    """
    wanted = _dtype(dtype)
    file = checked_file(path)

    def in_memory(made: Made, why: OSError) -> tuple[Any, Any]:
        warn(f"the unpacked {file.name} cannot be kept, so it is unpacked each time: {first_line(why)}; {_ELSEWHERE}")
        return made[0].to(wanted), made[1]

    with telling(str(path), hint=_HINT):
        model, tokenizer = _use(file, lambda kept: kept.load(wanted), in_memory, warn, tell)
    tokenizer.padding_side = "left"  # on the right it would stand between a prompt and its answer
    return model, tokenizer


def gguf_folder(path: str | os.PathLike[str], *, warn: Say = _warn, tell: Say = _LOG.info) -> Path:
    """The folder of the unpacked model, for programs that load it themselves.

    Raises what :func:`load_gguf` does, and :class:`InputError` if the folder cannot be written.
    """
    file = checked_file(path)

    def refuse(made: Made, why: OSError) -> Path:
        raise InputError(
            f"the unpacked {file.name} has to be on disk for this, and cannot be: {first_line(why)}; {_ELSEWHERE}"
        ) from why

    with telling(str(path), hint=_HINT):
        return _use(file, lambda kept: kept.folder, refuse, warn, tell)


def gguf_config(path: str | os.PathLike[str]) -> Any:
    """The config of the model in a file, without its weights. Raises what :func:`load_gguf` does."""
    file = checked_file(path)
    with telling(str(path), hint=_HINT):
        with suppress(OSError, ValueError):  # none there, or damaged: the file has it too, and takes longer
            kept = Kept.of(key_of(file))
            kept.check()
            from transformers import AutoConfig

            return AutoConfig.from_pretrained(kept.folder, local_files_only=True)
        return read_config(file)


def _use(
    file: Path, use: Callable[[Kept], _Of], otherwise: Callable[[Made, OSError], _Of], warn: Say, tell: Say
) -> _Of:
    """``use`` the unpacked model, unpacking it first if need be; ``otherwise`` if it cannot be kept."""
    try:
        kept = Kept.of(key_of(file))
        seen = kept.identity()
    except OSError as error:  # no place to keep anything
        made = convert(file, tell)
        for remark in made[2]:
            warn(remark)
        return otherwise(made, error)
    if seen is not None:
        try:
            remarks = kept.check()
            found = use(kept)
        except Exception as error:  # whatever a damaged file makes the loaders raise
            warn(f"the unpacked {file.name} in {kept.folder} is damaged ({first_line(error)}); it is made again")
        else:
            for remark in remarks:
                warn(remark)
            return found
    made = convert(file, tell)
    for remark in made[2]:
        warn(remark)
    try:
        if seen is not None:
            kept.discard(seen)
        kept.put(*made)
    except OSError as error:
        return otherwise(made, error)
    del made  # before its twin is loaded
    return use(kept)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    import torch

    if dtype is None or dtype == "auto":
        return torch.float32
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f'dtype must be a torch dtype of floating point, or "auto" (fp32 here), got {dtype!r}')
    return dtype
