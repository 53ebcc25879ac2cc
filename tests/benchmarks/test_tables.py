"""The tables of docs are what the records say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from squeezeattention.evaluation import summarize

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import tables

    yield tables
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in ("tables", "results"):
        sys.modules.pop(name, None)


def test_the_tables_are_as_the_records_have_them():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_summary_is_what_its_rows_say():
    folder = ROOT / "benchmarks" / "eval" / "embedded-quick"
    assert summarize(folder) == json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_another_figure_is_stale(tables):
    text = "before\n<!-- table: p -->\n\n| p | 0.1 |\n\n<!-- end -->\nafter\n"
    new = tables.renewed(text)
    assert new != text
    assert new.startswith("before\n<!-- table: p -->\n\n| p |")
    assert new.endswith("|\n\n<!-- end -->\nafter\n")
    assert tables.renewed(new) == new


def test_every_table_is_in_the_docs_and_the_other_way_round(tables):
    text = "".join(path.read_text(encoding="utf-8") for path in tables.DOCS)
    assert all(f"<!-- table: {name} -->" in text for name in tables.TABLES)


def test_an_unknown_table_is_named(tables):
    with pytest.raises(SystemExit, match="'nothing'"):
        tables.renewed("<!-- table: nothing -->\n<!-- end -->")
