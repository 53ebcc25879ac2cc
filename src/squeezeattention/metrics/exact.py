"""Exact answers: a value is right as a whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence

from .base import best_of

_OPENING = " \t\r\n\"'`"


def exact_recall(prediction: str, answers: Sequence[str]) -> float:
    """Whether the prediction begins with a reference, after blanks and quotes, and goes on with no letter or digit.

    What is written after the value does not matter: a base model goes on until its tokens are used up. ``48213`` is
    not in ``482130``. The best of the references counts.
    """
    return best_of(_begins, prediction, answers)


def exact_first_line(prediction: str, answers: Sequence[str]) -> float:
    """Whether the first line that is not blank equals a reference, blanks around it aside. The best one counts."""
    return best_of(lambda text, answer: float(text == answer.strip()), _first_line(prediction), answers)


def _first_line(text: str) -> str:
    """The first line that is not blank, without blanks around it; empty if there is none."""
    return text.strip().partition("\n")[0].strip()


def _begins(prediction: str, answer: str) -> float:
    said = prediction.lstrip(_OPENING)
    return float(said.startswith(answer) and not said[len(answer) : len(answer) + 1].isalnum())
