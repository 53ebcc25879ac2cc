"""Whether a run that was repeated says the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from .folder import read_rows, read_run

#: Largest difference of a score that counts as none: what another order of additions may do to a likelihood.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Agreement:
    """Row by row, as far as both runs have rows."""

    rows: int
    """Rows of the first run."""
    compared: int
    same_scores: int
    """All scores of the row within :data:`TOLERANCE`."""
    same_answers: int
    """Answers equal to the letter."""
    largest: float
    """Largest difference of a score."""
    first: str | None
    """Id of the first row whose scores differ."""

    @property
    def agrees(self) -> bool:
        return self.compared == self.rows == self.same_scores

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "agrees": self.agrees}

    def __str__(self) -> str:
        if self.agrees:
            return f"the scores agree: {self.rows} rows, {self.same_answers} with the same answers to the letter"
        missing = f"; {self.rows - self.compared} rows are missing" if self.compared < self.rows else ""
        return (
            f"the scores do not agree: {self.compared - self.same_scores} of {self.compared} rows differ, by up to "
            f"{self.largest:.3g}, first {self.first}{missing}"
        )


def compare(first: Path, second: Path) -> Agreement:
    """Compare two folders of results of one model and one grid.

    Raises :class:`EvaluationError` if they are of other models, or of samples with other texts.
    """
    models = [read_run(folder)["model"]["fingerprint"] for folder in (first, second)]
    if models[0] != models[1]:
        raise EvaluationError(f"{first} and {second} are of different models ({models[0]} and {models[1]})")
    old, new = ({row["id"]: row for row in read_rows(folder)} for folder in (first, second))
    common = [identity for identity in old if identity in new]
    gaps = {}
    for identity in common:
        if old[identity]["digest"] != new[identity]["digest"]:
            raise EvaluationError(f"the text of {identity} is not the same in {first} and {second}")
        gaps[identity] = _gap(old[identity]["scores"], new[identity]["scores"])
    differing = [identity for identity, gap in gaps.items() if gap > TOLERANCE]
    return Agreement(
        rows=len(old),
        compared=len(common),
        same_scores=len(common) - len(differing),
        same_answers=sum(old[identity]["answers"] == new[identity]["answers"] for identity in common),
        largest=max(gaps.values(), default=0.0),
        first=differing[0] if differing else None,
    )


def _gap(old: list[float], new: list[float]) -> float:
    return max((abs(a - b) for a, b in zip(old, new, strict=True)), default=0.0)
