"""Conversations with an instruct model on a squeezed cache."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversation import Conversation, Reply

__all__ = ["Conversation", "Reply"]


def __getattr__(name: str) -> Any:
    """Imported when they are used: the command line reads a template without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".conversation", __name__), name)
