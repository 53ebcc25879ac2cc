"""A folder of results: ``run.json`` says what was run, ``results.jsonl`` has a line for each piece of work."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import EvaluationError

RUN, ROWS = "run.json", "results.jsonl"
FORMAT, VERSION = "squeezeattention-evaluation", 1
#: Settings to which a run that goes on may add: they say what else is measured on the same samples.
_MAY_GROW = ("policies", "allocators", "budgets")


class Results:
    """The folder of a run that goes on, perhaps with more policies, allocators or budgets: what is done, and where new
    rows go.

    Raises :class:`EvaluationError` if the folder belongs to another run, is damaged, or is being written by
    another process.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.folder = folder
        if (folder / RUN).exists():  # a folder that is refused is left as it is
            _check_goes_on(read_run(folder), run, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = (folder / ROWS).open("ab")
        except OSError as error:
            raise EvaluationError(f"cannot write to the folder {folder}: {error.strerror or error}") from error
        try:
            _lock(self._file, folder)
            self._begin(run)
            _cut_half_line(folder / ROWS)
            self.rows = {row["id"]: row for row in read_rows(folder)}
        except BaseException:
            self._file.close()
            raise

    def _begin(self, run: Mapping[str, Any]) -> None:
        """Write ``run.json``, or add this machine, and what there is more to do, to the one that is there."""
        if not (self.folder / RUN).exists():
            if (self.folder / ROWS).stat().st_size:
                raise EvaluationError(f"{self.folder} has results but no {RUN} that says what they are of")
            write_json(self.folder / RUN, {"format": FORMAT, "version": VERSION, **run})
            return
        before = read_run(self.folder)
        _check_goes_on(before, run, self.folder)
        new = [machine for machine in run["environments"] if machine not in before["environments"]]
        if new or before["settings"] != run["settings"]:
            whole = {**before, "settings": run["settings"], "environments": [*before["environments"], *new]}
            write_json(self.folder / RUN, whole)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row, whole and for good, before this returns."""
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows[row["id"]] = dict(row)

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _check_goes_on(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """As :func:`check_same`, but there may be more of :data:`_MAY_GROW` now."""
    old, new = before["settings"], now["settings"]
    grown = {name: new[name] for name in _MAY_GROW if name in old and set(old[name]) <= set(new[name])}
    check_same({**before, "settings": {**old, **grown}}, now, folder)


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """:class:`EvaluationError` unless settings, model and items are those that the folder's results are of."""
    old, new = before["settings"], now["settings"]
    if changed := [name for name in {**new, **old} if old.get(name) != new.get(name)]:
        name = changed[0]
        more = f", and so are {', '.join(changed[1:])}" if len(changed) > 1 else ""
        raise EvaluationError(
            f"{folder} holds a run with other settings ({name} is {old.get(name)!r} there, {new.get(name)!r} "
            f"now{more}): give --out another folder"
        )
    if before["model"] != now["model"]:
        raise EvaluationError(f"{folder} holds a run of another model ({before['model']}, now {now['model']})")
    if before["data"] != now["data"]:
        raise EvaluationError(f"{folder} holds a run on other samples")


def read_run(folder: Path) -> dict[str, Any]:
    """What is in a folder's ``run.json``; raises :class:`EvaluationError`."""
    path = folder / RUN
    try:
        run = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise EvaluationError(f"{folder} has no {RUN}: it is no folder of `squeeze eval`") from None
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise EvaluationError(f"{path} is damaged: {error}") from error
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise EvaluationError(f'{path} is of something else: it has no "format": "{FORMAT}"')
    if run.get("version") != VERSION:
        raise EvaluationError(f"{path} has version {run.get('version')!r}; this release reads {VERSION}")
    if missing := [name for name in ("settings", "model", "data", "environments") if name not in run]:
        raise EvaluationError(f"{path} is damaged: it lacks {', '.join(missing)}")
    return run


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder, sorted by id, without a last line that is still half written.

    A row may be followed by another of its id if it failed: the work was tried again. Raises :class:`EvaluationError`
    for any other line that is no row, and for any other two rows of one id.
    """
    path = folder / ROWS
    try:
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror or error}") from error
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            identity = str(row["id"])
        except (ValueError, TypeError, KeyError) as error:
            raise EvaluationError(f"{path} is damaged: line {number} is no result ({error})") from error
        if identity in rows and rows[identity].get("error") is None:
            raise EvaluationError(f"{path} is damaged: line {number} repeats {identity}")
        rows[identity] = row
    return [rows[identity] for identity in sorted(rows)]


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all; raises :class:`EvaluationError`."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        scratch.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror or error}") from error


def _cut_half_line(path: Path) -> None:
    """Cut off what follows the last newline: a row that a killed process did not finish."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)


def _lock(file: IO[bytes], folder: Path) -> None:
    """Keep other processes out until the file is closed, however this one ends. (Windows has no ``fcntl``.)"""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EvaluationError(f"another process is writing results to {folder}") from None
