"""The files that steps leave, read and mended without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Characters of a dead step's output that its record keeps, from the end.
MOST_OUTPUT = 20000


def read(folder: Path, step: str) -> dict[str, Any] | None:
    """A step's record, ``None`` if there is none."""
    path = folder / f"{step}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def add_end(path: Path, step: str, how: str, output: str) -> None:
    """Note in a step's record that it did not end by itself, with what it wrote last."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"step": step, "rows": []}
    record["ended"], record["output"] = how, output[-MOST_OUTPUT:]
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
