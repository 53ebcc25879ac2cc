"""F1 of words for short answers to questions (SQuAD, Rajpurkar et al. 2016; used so by LongBench)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from .base import best_of

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def qa_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words shared with a reference, after SQuAD's normalisation; the best of the references.

    0 where either is empty after that, both included (SQuAD 1.1 and LongBench; SQuAD 2.0 gives 1 to two empty texts).
    """
    return best_of(_f1, prediction, answers)


def normalized(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no English articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _f1(prediction: str, answer: str) -> float:
    said, wanted = normalized(prediction).split(), normalized(answer).split()
    shared = (Counter(said) & Counter(wanted)).total() if said and wanted else 0
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0
