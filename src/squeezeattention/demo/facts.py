"""What is hidden in a text and asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """Somebody's number."""

    name: str
    value: str
    statement: str
    """As it stands in the text, with the white space behind it."""
    question: str
    """For people to read."""
    prompt: str
    """What the model is given after the text; it goes on with a space and the value."""
