"""LongBench's score for the next line of code (Bai et al. 2024, arXiv 2308.14508)."""

from __future__ import annotations

from collections.abc import Sequence

from ..extras import require
from .base import best_of

_NOT_CODE = ("`", "#", "//")


def code_sim(prediction: str, answers: Sequence[str]) -> float:
    """Edit similarity of a reference and the prediction's first line of code; the best one (extra ``eval``).

    The first line of code is the first without a backtick, ``#`` or ``//``. Similarity is 1 - (insertions and
    deletions) / (length of both), which LongBench rounds to whole percents and this does not.
    """
    ratio = require("rapidfuzz.fuzz", "eval").ratio
    lines = prediction.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(mark in line for mark in _NOT_CODE)), "")
    return best_of(lambda text, answer: float(ratio(text, answer)) / 100 if text else 0.0, code, answers)
