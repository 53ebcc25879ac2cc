"""LongBench's score for labels (Bai et al. 2024, arXiv 2308.14508)."""

from __future__ import annotations

from collections.abc import Sequence

from .base import best_of


def classification(prediction: str, answers: Sequence[str], *, classes: Sequence[str] = ()) -> float:
    """1 / the number of ``classes`` that the prediction names, if the right one is among them; best reference.

    A class whose name is a part of the right one's is not counted as named with it. ``classes`` are all labels of the
    data set; without them only the right one is looked for, and naming others costs nothing. (LongBench's own code
    changes a list while it walks over it, and so misses some of the parts.)
    """

    def against(text: str, answer: str) -> float:
        if answer not in text:
            return 0.0
        others = {name for name in classes if name in text and name not in answer}
        return 1 / (1 + len(others))

    return best_of(against, prediction, answers)
