"""Rows of a data file: JSONL, JSON, CSV or Parquet, told apart by the name's ending."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import InputError
from ..extras import require

#: A file of its own, or one inside a zip archive.
Source = Path | zipfile.Path

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_CELL_LIMIT = 2**31 - 1  # csv refuses cells above 128 kB unless told; a book is longer
_BATCH_ROWS = 16  # of Parquet at once: a row may hold a whole book


class Row(NamedTuple):
    """One record, and how to name it in a message ("test.jsonl, line 3")."""

    place: str
    values: Mapping[str, Any]


def read_rows(source: Source, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a file, one by one where the format allows it.

    ``columns``: the only ones that are wanted, which Parquet files are read faster for. Raises
    :class:`InputError` for a file that cannot be read or is not what its name says, and
    :class:`~squeezeattention.errors.MissingExtraError` for Parquet without pyarrow.
    """
    ending = PurePosixPath(source.name).suffix.lower()
    try:
        if ending == ".jsonl":
            yield from _json_lines(source)
        elif ending == ".json":
            yield from _json(source)
        elif ending in (".csv", ".tsv"):
            yield from _csv(source, "," if ending == ".csv" else "\t")
        elif ending == ".parquet":
            yield from _parquet(source, columns)
        else:
            raise InputError(f"cannot read {source}: its name should end in one of {', '.join(ENDINGS)}")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {source}: it is not UTF-8 text") from error
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror or error}") from error


def _text(source: Source) -> io.TextIOWrapper:
    return io.TextIOWrapper(source.open("rb"), encoding="utf-8-sig", newline="")


def _json_lines(source: Source) -> Iterator[Row]:
    with _text(source) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{source.name}, line {number}"
                yield _row(place, _parse(line, place))


def _json(source: Source) -> Iterator[Row]:
    with _text(source) as file:
        data = _parse(file.read(), source.name)
    if isinstance(data, dict):  # a header around the one list of records
        lists = [value for value in data.values() if isinstance(value, list)]
        data = lists[0] if len(lists) == 1 else data
    if not isinstance(data, list):
        raise InputError(f"{source.name} must hold a JSON list of objects, or one object with one such list")
    for number, values in enumerate(data, start=1):
        yield _row(f"{source.name}, record {number}", values)


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{place} is not JSON: {error}") from error


def _row(place: str, values: Any) -> Row:
    if not isinstance(values, dict):
        raise InputError(f"{place} is not a JSON object")
    return Row(place, values)


def _csv(source: Source, delimiter: str) -> Iterator[Row]:
    before = csv.field_size_limit()
    with _text(source) as file:
        rows = csv.DictReader(file, delimiter=delimiter, strict=True)
        number = 1
        while True:
            # The limit belongs to the whole process, so it is lifted only while a row is read.
            csv.field_size_limit(_CELL_LIMIT)
            try:
                values = next(rows, None)
            except csv.Error as error:
                raise InputError(f"{source.name}, row {number} is not CSV: {error}") from error
            finally:
                csv.field_size_limit(before)
            if values is None:
                return
            yield Row(f"{source.name}, row {number}", {name: cell for name, cell in values.items() if name})
            number += 1


def _parquet(source: Source, columns: Sequence[str] | None) -> Iterator[Row]:
    pyarrow, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    with source.open("rb") as handle:
        try:
            file = parquet.ParquetFile(handle)
            known = file.schema_arrow.names
            wanted = None if columns is None else [name for name in known if name in columns]
            number = 1
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                for values in batch.to_pylist():
                    yield Row(f"{source.name}, row {number}", values)
                    number += 1
        except pyarrow.ArrowInvalid as error:
            raise InputError(f"{source.name} is not a Parquet file: {error}") from error
