"""Files of tensors with JSON beside them: whole or not at all, and told when they are damaged."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import __version__
from ..errors import CacheFileError

FORMAT = "squeezeattention-cache"


def write(path: str | os.PathLike[str], content: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write beside the target, then rename over it. ``tensors``: contiguous, on the CPU."""
    data = {key: json.dumps(value) for key, value in content.items()}
    metadata = {"format": FORMAT, "release": __version__, **data, "checksum": str(_checksum(data, tensors))}
    try:
        target = Path(path)
        scratch = target.with_name(f".{uuid4().hex}.tmp")
        try:
            save_file(tensors, scratch, metadata)
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise CacheFileError(f"cannot write the cache to {os.fspath(path)}: {error}") from error


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What :func:`write` was given. Raises :class:`CacheFileError`."""
    where = os.fspath(path)
    try:
        with safe_open(where, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata.pop("format", None) != FORMAT:
                raise CacheFileError(f"{where} holds no cache: it was not written by SqueezeCache.save")
            if (release := metadata.pop("release", None)) != __version__:
                raise CacheFileError(
                    f"{where} was saved by release {release} of squeezeattention, and this is {__version__}: a cache "
                    "is read by the release that wrote it; let the model read the text again"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, CacheFileError):
            raise
        raise CacheFileError(f"cannot read a cache from {where}: {error}") from error
    if metadata.pop("checksum", None) != str(_checksum(metadata, tensors)):
        raise CacheFileError(f"{where} is damaged: its content is not what was saved")
    return {key: json.loads(value) for key, value in metadata.items()}, tensors


def _checksum(data: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> int:
    found = 0
    for key in sorted(data):
        found = zlib.crc32(f"{key}={data[key]}".encode(), found)
    for name in sorted(tensors):
        found = zlib.crc32(name.encode(), found)
        if tensors[name].numel():
            found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, found)
    return found
