"""Optional dependencies: imported when they are needed, with an error that says how to get them."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingExtraError


def require(module: str, extra: str, commands: str | None = None) -> ModuleType:
    """Import ``module`` and return it; :class:`MissingExtraError` names ``extra`` if it is not installed.

    ``commands``: what to do about it, where that is not just to install the extra.

    Only a missing module is turned into that error: one that is installed but broken raises its own.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        via = "" if missing.partition(".")[0] == module.partition(".")[0] else f" (imported by {module!r})"
        remedy = commands or f'pip install "squeezeattention[{extra}]"'
        raise MissingExtraError(
            f"{missing!r}{via} is not installed; it comes with the {extra!r} extra: {remedy}", name=missing
        ) from error
