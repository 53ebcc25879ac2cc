"""How long a text a model was made for."""

from __future__ import annotations

from typing import Any


def longest_text(model: Any) -> int | None:
    """Positions that a model was made for, if its config says so: beyond them it fails or talks nonsense."""
    return longest_of(model.config.get_text_config())


def longest_of(text: Any) -> int | None:
    """The same of a text decoder's config."""
    longest = getattr(text, "max_position_embeddings", None)
    return longest if isinstance(longest, int) else None
