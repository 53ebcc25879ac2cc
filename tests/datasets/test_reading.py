"""Files of every format, good and bad."""

import csv
import json
import sys
import zipfile

import pytest

from squeezeattention.datasets.fields import Fields, lookup, text_of, texts_of
from squeezeattention.datasets.reading import Row, read_rows
from squeezeattention.errors import ConfigError, InputError, MissingExtraError

ROWS = [{"a": "eins\nzwei", "b": ["x", "y"]}, {"a": "三", "b": []}]


def values(path, columns=None):
    return [dict(row.values) for row in read_rows(path, columns)]


def test_jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    assert values(path) == ROWS
    assert [row.place for row in read_rows(path)] == ["rows.jsonl, line 1", "rows.jsonl, line 3"]


@pytest.mark.parametrize("wrapped", [ROWS, {"version": 1, "Data": ROWS}], ids=["list", "header"])
def test_json(tmp_path, wrapped):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(wrapped))
    assert values(path) == ROWS


@pytest.mark.parametrize(("ending", "delimiter"), [(".csv", ","), (".TSV", "\t")])
def test_csv_with_cells_longer_than_the_default_limit(tmp_path, ending, delimiter):
    before = csv.field_size_limit()
    path = tmp_path / f"rows{ending}"
    long = 'he said "hello",\n' * 20_000
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([["a", "b"], [long, "1"], ["x", "2"]])
    assert values(path) == [{"a": long, "b": "1"}, {"a": "x", "b": "2"}]
    next(iter(read_rows(path)))  # and given up half way
    assert csv.field_size_limit() == before


def test_inside_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("data/rows.jsonl", json.dumps(ROWS[1]))
    assert values(zipfile.Path(tmp_path / "rows.zip", "data/rows.jsonl")) == ROWS[1:]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"document": {"text": f"book {i}", "id": str(i)}, "answers": [{"text": "x"}], "z": 0} for i in range(40)]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert values(path) == rows
    assert values(path, ["document", "document.text", "absent"])[7] == {"document": {"text": "book 7", "id": "7"}}
    path.write_bytes(b"PAR1 it is not")
    with pytest.raises(InputError, match=r"rows\.parquet is not a Parquet file"):
        values(path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").touch()
    with pytest.raises(MissingExtraError, match=r"pyarrow.*parquet"):
        values(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b"[1]", "line 1 is not a JSON object"),
        ("a.jsonl", b"\xff\xfe\x00", "not UTF-8"),
        ("a.json", b'{"a": 1}', "must hold a JSON list"),
        ("a.json", b"[1]", "record 1 is not a JSON object"),
        ("a.csv", b'a,b\n"x" y,1\n', "row 1 is not CSV"),
        ("a.txt", b"text", "its name should end in"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        values(tmp_path / name)


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        values(tmp_path / "gone.jsonl")


def test_dotted_names():
    row = {"a": {"b": [{"c": 1}, {"c": 2}]}, "a.b": "plain", "d": None}
    assert lookup(row, "a.b") == "plain"
    assert lookup(row, "a.b.c") == [1, 2]
    assert lookup(row, "d") is lookup(row, "a.x") is lookup(row, "x") is lookup(row, "a.b.x") is None


def test_texts():
    row = Row("row 1", {"one": "x", "many": ["x", 2], "none": None, "empty": [], "odd": [{}], "blank": " "})
    assert texts_of(row, "one") == ("x",)
    assert texts_of(row, "many") == ("x", "2")
    assert text_of(row, "many") == "x\n\n2"
    for name, message in [("none", "no field 'none'"), ("empty", "must be a text"), ("odd", "must be a text")]:
        with pytest.raises(InputError, match=message):
            texts_of(row, name)
    with pytest.raises(InputError, match="'blank' is empty"):
        text_of(row, "blank")


def test_mapping_of_fields():
    fields = Fields(context="a.b", answers="c", id="i").mapped({"answers": "z", "id": None})
    assert fields == Fields(context="a.b", answers="z")
    assert fields.columns() == ["a", "a.b", "z"]
    with pytest.raises(ConfigError, match=r"no role 'question'.*input"):
        fields.mapped({"question": "q"})
