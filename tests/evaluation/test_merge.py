"""A run in parts is the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squeezeattention.errors import ConfigError, EvaluationError
from squeezeattention.evaluation import Settings, merge, part_of
from squeezeattention.evaluation.folder import ROWS, read_rows, read_run

from .conftest import Run


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


def test_parts_put_together_are_the_whole_run(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    evaluate(settings, tmp_path / "whole")
    parts = [tmp_path / f"part{which}" for which in (1, 2, 3, 4)]
    for which, folder in enumerate(parts, 1):
        evaluate(settings, folder, part=(which, 4))
    sizes = [len(read_rows(folder)) for folder in parts]
    assert sizes == [6, 6, 3, 3]  # six samples, three caches each
    assert merge(parts, tmp_path / "merged") == 18
    assert without_times(read_rows(tmp_path / "merged")) == without_times(read_rows(tmp_path / "whole"))
    whole, merged = (read_run(tmp_path / name) for name in ("whole", "merged"))
    assert {**merged, "environments": 0} == {**whole, "environments": 0}
    evaluate(settings, tmp_path / "merged")  # nothing is left to do
    assert len((tmp_path / "merged" / ROWS).read_bytes().splitlines()) == 18


def test_machines_of_all_parts_are_named(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    for which in (1, 2):
        evaluate(settings, tmp_path / str(which), part=(which, 2))
    run = tmp_path / "2" / "run.json"
    data = json.loads(run.read_text())
    data["environments"][0]["gpus"] = ["another"]
    run.write_text(json.dumps(data))
    merge([tmp_path / "1", tmp_path / "2"], tmp_path / "both")
    assert [one["gpus"] for one in read_run(tmp_path / "both")["environments"]] == [[], ["another"]]


def test_what_is_not_of_one_run_or_twice_there_is_refused(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    evaluate(settings, tmp_path / "one", part=(1, 2))
    evaluate(replace(settings, budgets=("0.5",)), tmp_path / "other", part=(2, 2))
    for parts, words in (
        (["one", "other"], "other settings"), (["one", "one"], "both have results"), ([], "nothing to put together"),
    ):  # fmt: skip
        with pytest.raises(EvaluationError, match=words):
            merge([tmp_path / name for name in parts], tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(EvaluationError, match="holds results already"):
        merge([tmp_path / "one"], tmp_path / "other")


def test_a_failed_row_gives_way(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        evaluate(settings, tmp_path / name, part=(1, 2))
    file = tmp_path / "bad" / ROWS
    rows = [{**json.loads(line), "error": {"type": "E", "text": "t"}} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for order in (("good", "bad"), ("bad", "good")):
        assert merge([tmp_path / name for name in order], tmp_path / order[0] / "out") == 9
        assert all(row["error"] is None for row in read_rows(tmp_path / order[0] / "out"))


@pytest.mark.parametrize("text", ["0/3", "4/3", "a/3", "3", "1/0", "-1/2", ""])
def test_a_part_is_which_of_how_many(text: str) -> None:
    with pytest.raises(ConfigError, match="which of how many"):
        part_of(text)
    assert part_of("3/3") == (3, 3)


def test_the_command_runs_parts_and_merges(squeeze: Callable[..., Any], tmp_path: Path) -> None:
    words = [
        "run",
        "--model",
        "tiny",
        "-t",
        "lines",
        "--length",
        40,
        "--samples",
        2,
        "--policy",
        "h2o/uniform",
        "-b",
        0.5,
    ]
    for which in (1, 2):
        assert squeeze(*words, "--part", f"{which}/2", "-o", tmp_path / str(which)).exit_code == 0
    done = squeeze("merge", tmp_path / "1", tmp_path / "2", "-o", tmp_path / "both", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == 4
    assert squeeze(*words, "--part", "3/2").exit_code == 2
