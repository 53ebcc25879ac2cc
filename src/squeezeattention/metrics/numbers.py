"""LongBench's scores for answers that are a number (Bai et al. 2024, arXiv 2308.14508)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import ConfigError
from .base import best_of

_NUMBER = re.compile(r"\d+")


def count(prediction: str, answers: Sequence[str]) -> float:
    """Share of the numbers in the prediction that are the reference, 0 without any; the best of the references."""
    return best_of(_share, prediction, answers)


def retrieval(prediction: str, answers: Sequence[str]) -> float:
    """The same with a reference such as ``Paragraph 12``, of which the number counts; the best of the references.

    Raises :class:`~squeezeattention.errors.ConfigError` for a reference without a number.
    """
    return best_of(lambda text, answer: _share(text, _number_of(answer)), prediction, answers)


def _share(prediction: str, number: str) -> float:
    found = _NUMBER.findall(prediction)
    return found.count(number) / len(found) if found else 0.0


def _number_of(answer: str) -> str:
    found = _NUMBER.search(answer)
    if found is None:
        raise ConfigError(f"the reference {answer!r} has no number, such as 'Paragraph 12' has")
    return found.group()
