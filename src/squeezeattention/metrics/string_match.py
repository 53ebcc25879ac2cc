"""RULER's metrics: is a reference contained in what was written? Upper and lower case are the same."""

from __future__ import annotations

from collections.abc import Sequence

from .base import check_answers


def string_match_all(prediction: str, answers: Sequence[str]) -> float:
    """Share of the references that the prediction contains (RULER's synthetic tasks)."""
    return sum(_contained(prediction, answers)) / len(answers)


def string_match_part(prediction: str, answers: Sequence[str]) -> float:
    """Whether the prediction contains at least one of the references (RULER's question answering)."""
    return float(any(_contained(prediction, answers)))


def _contained(prediction: str, answers: Sequence[str]) -> list[bool]:
    check_answers(answers)
    return [answer.lower() in prediction.lower() for answer in answers]
