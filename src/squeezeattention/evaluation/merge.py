"""Parts of one run, that were made side by side on cores, GPUs or machines of their own, put together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, EvaluationError
from .folder import ROWS, RUN, check_same, read_rows, read_run, write_json


def part_of(text: str) -> tuple[int, int]:
    """(which, of how many) of ``"2/8"``: the second of eight parts. Raises :class:`ConfigError`."""
    which, _, of = text.partition("/")
    if which.isdecimal() and of.isdecimal() and 1 <= int(which) <= int(of):
        return int(which), int(of)
    raise ConfigError(f'--part is which of how many, such as "2/8", from 1 on; got {text!r}')


def merge(parts: Sequence[Path], out: Path) -> int:
    """Write the results of ``parts`` to a new folder ``out``, with all machines that they come from; returns how many
    rows there are now. A row that failed gives way to one that did not.

    Raises :class:`EvaluationError` if there is something in ``out`` already, if the parts are not of one run (other
    settings, another model or other data), or if two have results of the same work.
    """
    if not parts:
        raise EvaluationError("there is nothing to put together: give the folders of the parts")
    if any((out / name).exists() for name in (RUN, ROWS)):
        raise EvaluationError(f"{out} holds results already: give a new folder")
    whole = read_run(parts[0])
    rows: dict[str, dict[str, Any]] = {}
    origin: dict[str, Path] = {}
    for folder in parts:
        run = read_run(folder)
        check_same(whole, run, folder)
        whole["environments"] += [machine for machine in run["environments"] if machine not in whole["environments"]]
        for row in read_rows(folder):
            before = rows.get(row["id"])
            if before is not None and row["error"] is not None:
                continue
            if before is not None and before["error"] is None:
                raise EvaluationError(f"{origin[row['id']]} and {folder} both have results of {row['id']}")
            rows[row["id"]], origin[row["id"]] = row, folder
    try:
        out.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows.values())
        (out / ROWS).write_text(lines, encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"cannot write to the folder {out}: {error.strerror or error}") from error
    write_json(out / RUN, whole)
    return len(rows)
