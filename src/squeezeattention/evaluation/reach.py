"""How many bytes a share of the full cache's score takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

SHARES = (0.9, 0.95)


class Reach(NamedTuple):
    """Bytes from which on a score is reached and kept."""

    status: Literal["reached", "at_most", "not_reached", "undefined"]
    """"at_most": by the smallest budget that was measured. "undefined": the full cache itself scores 0."""
    bytes: float | None


def bytes_to_reach(points: Sequence[tuple[float, float]], target: float) -> Reach:
    """Where the line through ``points`` (bytes, score) comes up to ``target`` for the last time.

    Linear between measured budgets and nowhere beyond them. A curve that dips under the target again has not
    reached it before the dip.
    """
    if target <= 0:
        return Reach("undefined", None)
    above: tuple[float, float] | None = None
    for size, score in sorted(points, reverse=True):
        if score >= target:
            above = size, score
        elif above is None:
            return Reach("not_reached", None)
        else:
            way = (target - score) / (above[1] - score)
            return Reach("reached", size + way * (above[0] - size))
    return Reach("not_reached", None) if above is None else Reach("at_most", above[0])
