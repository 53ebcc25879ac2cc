"""Where this library keeps files of its own."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """``$SQUEEZE_CACHE_HOME``, else ``$XDG_CACHE_HOME``, else ``~/.cache``; in it ``squeezeattention``.

    Raises :class:`OSError` if the user has no home and no variable says where.
    """
    for variable in ("SQUEEZE_CACHE_HOME", "XDG_CACHE_HOME"):
        if given := os.environ.get(variable):
            base = Path(given).expanduser()
            break
    else:
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            raise OSError(str(error)) from error
    return base / "squeezeattention"
