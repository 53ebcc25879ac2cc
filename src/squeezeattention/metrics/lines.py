"""Long answers of many lines, each right or wrong."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

from .base import check_answers


def lines_in_order(prediction: str, answers: Sequence[str]) -> float:
    """Share of the references, one a line, that were written in their order.

    The longest common subsequence of the references and of as many lines of the prediction, blank ones and blanks
    around lines aside. So a line that is left out, or one too many, costs itself and not all that follow, as it would
    line by line; and since only so many lines count, writing more of them cannot help. A list in a random order gets
    about 2 / sqrt(n) of n lines that way, so tasks in which the order is the question number their lines.
    """
    check_answers(answers)
    places: dict[str, list[int]] = defaultdict(list)
    for place, answer in enumerate(answers):
        places[answer.strip()].append(place)
    written = [line.strip() for line in prediction.splitlines() if line.strip()]
    # Hunt and Szymanski: ends[k] is the smallest place at which a common subsequence of k + 1 lines ends.
    ends: list[int] = []
    for line in written[: len(answers)]:
        for place in reversed(places.get(line, [])):
            spot = bisect_left(ends, place)
            ends[spot : spot + 1] = [place]
    return len(ends) / len(answers)
