"""The report of a folder of results: summary, pictures, and one page with everything. Needs the ``plot`` extra."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from ..plots import save
from .figures import pictures
from .folder import read_run
from .html import page
from .summary import SUMMARY, write_summary

PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """What was written."""

    summary: dict[str, Any]
    files: list[Path]


def write_report(folder: Path) -> Report:
    """``summary.json``, the pictures and ``report.html`` in a folder of results, finished or not.

    Raises :class:`EvaluationError` if the folder holds no results, or cannot be written to.
    """
    summary = write_summary(folder)
    if not summary["rows"]:
        raise EvaluationError(f"{folder} has no results yet")
    made = [(picture.caption, save(picture.figure, folder / picture.name)) for picture in pictures(summary)]
    target = folder / PAGE
    text = page(read_run(folder), summary, [(caption, path.read_bytes()) for caption, path in made])
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"cannot write {target}: {error.strerror or error}") from error
    return Report(summary, [folder / SUMMARY, *(path for _, path in made), target])
