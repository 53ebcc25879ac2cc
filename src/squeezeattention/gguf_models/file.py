"""A GGUF file on disk: whether it is one, and a key that no other file has."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ..errors import InputError

_MAGIC = b"GGUF"
_MIB = 2**20
_QUICK = 256 * _MIB  # up to here, all of a file is read for its key: a fraction of a second
_HEAD = 16 * _MIB
_PIECES = 64


def checked_file(path: str | os.PathLike[str]) -> Path:
    """The path, if a GGUF file can be read there; raises :class:`InputError`."""
    file = Path(path).expanduser()
    if not file.exists():
        raise InputError(f"cannot load the model {path}: there is no such file")
    if not file.is_file():
        raise InputError(f"cannot load the model {path}: it is no file")
    try:
        with file.open("rb") as stream:
            begin = stream.read(len(_MAGIC))
    except OSError as error:
        raise InputError(f"cannot load the model {path}: {error.strerror or error}") from error
    if begin != _MAGIC:
        raise InputError(
            f"cannot load the model {path}: it is no GGUF file: it begins with {begin!r} and not with {_MAGIC!r}"
            "; was it downloaded whole?"
        )
    return file


def key_of(file: Path) -> str:
    """Name, size and a hash of the content: what another file of the same name does not share."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", file.stem)[:80]
    return f"{stem}-{file.stat().st_size}-{_digest(file)[:16]}"


def _digest(file: Path) -> str:
    """SHA-256 of the content. Of a large file: of its head, of pieces all over it, and of when it was written."""
    found = hashlib.sha256()
    state = file.stat()
    with file.open("rb") as stream:
        if state.st_size <= _QUICK:
            while data := stream.read(4 * _MIB):
                found.update(data)
            return found.hexdigest()
        found.update(stream.read(_HEAD))
        last = state.st_size - _MIB
        for piece in range(_PIECES):
            stream.seek(_HEAD + (last - _HEAD) * piece // (_PIECES - 1))
            found.update(stream.read(_MIB))
    found.update(str(state.st_mtime_ns).encode())
    return found.hexdigest()
