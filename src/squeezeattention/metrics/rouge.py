"""ROUGE by the ``rouge-score`` package: lower case, letters and digits only, no stemming."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from ..extras import require
from .base import best_of


def rouge1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words that prediction and reference share; the best of the references (extra ``eval``)."""
    return _rouge("rouge1", prediction, answers)


def rouge2(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the pairs of adjacent words that they share; the best of the references (extra ``eval``)."""
    return _rouge("rouge2", prediction, answers)


def rougeL(prediction: str, answers: Sequence[str]) -> float:
    """F1 of their longest common subsequence of words, over the whole text; the best reference (extra ``eval``)."""
    return _rouge("rougeL", prediction, answers)


def _rouge(kind: str, prediction: str, answers: Sequence[str]) -> float:
    scorer = _scorer(kind)
    return best_of(lambda text, answer: float(scorer.score(answer, text)[kind].fmeasure), prediction, answers)


@cache
def _scorer(kind: str) -> Any:
    require("rouge_score", "eval")
    return require("rouge_score.rouge_scorer", "eval").RougeScorer([kind])
