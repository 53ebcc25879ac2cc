"""Real text without a download: the sources of Python's own standard library.

Modules are split by a hash of their path into a training part and a held-out part, so that the split
is the same on every machine and in every process. The embedded model never saw the held-out part.
"""

from __future__ import annotations

import sysconfig
import zlib
from functools import cache
from pathlib import Path

from ..errors import InputError

#: Folders that are not prose-like source code: tests, tables, vendored or third-party code.
_EXCLUDED = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test",
    "lib2to3", "encodings", "pydoc_data", "turtledemo", "__pycache__", "ensurepip",
}  # fmt: skip
_HELD_OUT_SHARE = 10  # one module in ten


def is_held_out(relative_path: str) -> bool:
    """Whether a module (path relative to the standard library, ``/`` separated) is held out."""
    return zlib.crc32(relative_path.encode()) % _HELD_OUT_SHARE == 0


@cache
def modules(*, held_out: bool, min_chars: int = 2_000) -> tuple[tuple[str, str], ...]:
    """``(relative path, source)`` of the standard library's modules, sorted by path.

    Files that cannot be decoded as UTF-8 are left out; ``min_chars`` drops near-empty ones.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _EXCLUDED.intersection(relative.parts):
            continue
        name = relative.as_posix()
        if is_held_out(name) != held_out:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if len(text) >= min_chars:
            found.append((name, text))
    return tuple(found)


def require_modules(*, held_out: bool) -> tuple[tuple[str, str], ...]:
    """:func:`modules`, or :class:`InputError` where Python came without the sources of its library."""
    found = modules(held_out=held_out)
    if not found:
        raise InputError("this Python installation has no source files of its standard library to read")
    return found
