"""``squeeze eval`` and its errors; ``squeeze tasks``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import squeezeattention.cli.evaluate as command
from squeezeattention.cli.app import app
from squeezeattention.datasets import DATASETS
from squeezeattention.errors import UnsupportedModelError
from squeezeattention.evaluation.folder import read_rows
from squeezeattention.evaluation.reading import Reading
from squeezeattention.policies import H2O
from squeezeattention.tasks import TASKS

from ..conftest import refused

SMALL = ("--task", "lines", "--task", "story", "--length", 40, "--samples", 2, "--policy", "h2o", "--budget", 0.3)
SMALL += ("--allocator", "uniform", "--allocator", "squeeze:outliers=clamp")


def test_tables_at_80_columns_and_paths(squeeze: Any, tmp_path: Path) -> None:
    result = squeeze("tiny", *SMALL, "--out", tmp_path / "deep" / "out")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    for word in ("lines, 40 tokens", "story, 40 tokens", "KV held", "-uniform", "squeeze clamp", "full cache"):
        assert word in result.stdout
    paths = [Path(line) for line in lines if line.startswith(str(tmp_path))]
    assert [path.name for path in paths] == [
        "summary.json", "accuracy_lines_40.png", "accuracy_story_40.png", "signals.png", "report.html",
    ]  # fmt: skip
    assert all(path.is_file() for path in paths)


def test_json_is_the_summary_and_goes_on(squeeze: Any, tmp_path: Path) -> None:
    first = squeeze("--model", "tiny", *SMALL, "--out", tmp_path, "--json")
    assert first.exit_code == 0, first.stderr
    data = json.loads(first.stdout)
    files = data.pop("files")
    assert data == json.loads((tmp_path / "summary.json").read_text())
    assert data["rows"] == data["expected"] == 12
    assert len(files) == 5
    again = squeeze("--model", "tiny", *SMALL, "--out", tmp_path, "--json")
    assert again.stdout == first.stdout
    drawn = squeeze("report", tmp_path, "--json")
    assert drawn.exit_code == 0
    assert drawn.stdout == first.stdout


def test_how_stable_the_plans_were(squeeze: Any, tmp_path: Path) -> None:
    """A study for each allocator that looks at prompts, of the plans that are on record, in 80 columns."""
    assert squeeze("tiny", *SMALL, "--allocator", "zigzag", "--out", tmp_path).exit_code == 0
    result = squeeze("plans", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout
    assert "h2o 30% squeeze" in result.stdout
    studies = json.loads(squeeze("plans", tmp_path, "--json").stdout)["studies"]
    assert [one["config"]["allocator"] for one in studies] == ["squeeze:outliers=clamp", "zigzag"]
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    for one in studies:
        assert one["length"] == 40
        assert [(task["task"], task["prompts"]) for task in one["tasks"]] == [("lines", 2), ("story", 2)]
        assert (one["within"]["pairs"], one["between"]["pairs"]) == (2, 4)
        budgets = [row["plans"][0]["budgets"] for row in rows if row["config"]["id"] == one["config"]["id"]]
        assert [layer["high"] for layer in one["all"]["budgets"]] == [
            max(layer) for layer in zip(*budgets, strict=True)
        ]
    assert studies[1]["all"]["groups"] is None
    assert squeeze("tiny", *SMALL[:-2], "--out", tmp_path / "uniform").exit_code == 0
    refused(squeeze("plans", tmp_path / "uniform"), "no two plans")
    refused(squeeze("plans", tmp_path / "none"), "run.json")


def test_rerun_says_whether_scores_agree(squeeze: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert squeeze("tiny", *SMALL, "--out", folder).exit_code == 0
    result = squeeze("rerun", folder)
    assert result.exit_code == 0, result.stderr
    assert "the scores agree: 12 rows" in result.stdout
    assert (tmp_path / "out-rerun" / "summary.json").read_bytes() == (folder / "summary.json").read_bytes()
    text = (folder / "results.jsonl").read_text()
    place = text.index('"scores": [') + len('"scores": [')
    (folder / "results.jsonl").write_text(text[:place] + "1" + text[place:])
    result = squeeze("rerun", folder, "--out", tmp_path / "third", "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert data["agrees"] is False
    assert data["compared"] - data["same_scores"] == 1
    refused(squeeze("rerun", folder, "--out", folder), "folder of its own")


def test_presets_and_what_is_given_instead(squeeze: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stop(settings: Any, out: Path, **options: Any) -> None:
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_work", stop)
    for arguments in (
        (),
        ("--quick",),
        ("embedded", "--quick", "--p", 0.3, "--p", 0.5, "--seeds", 4, "--dtype", "float16"),
    ):
        assert squeeze(*arguments).exit_code == 130
    standard, quick, changed = seen
    assert {"uniform", "random", "inverted", "pyramid", "squeeze"} <= set(standard.allocators)
    assert "recall" in quick.tasks
    assert len(list(quick.units())) < 400
    assert (changed.ps, changed.seeds, changed.dtype) == ((0.3, 0.5), (4,), "float16")
    assert {one.model for one in seen} == {"embedded"}
    assert {one.question for one in seen} == {"hidden"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "recal"), ("unknown task", "did you mean 'recall'", "data set")),
        (("--policy", "h20"), ("did you mean 'h2o'",)),
        (("--allocator", "sqeeze"), ("did you mean 'squeeze'",)),
        (("--allocator", "squeeze:outliers=drop"), ("keep", "clamp")),
        (("--budget", "1.5"), ("'1.5'", "512MiB")),
        (("--p", "0"), ("p must be",)),
        (("--samples", "0"), ("samples",)),
        (("--length", "10"), ("at least 20 tokens",)),
        (("--question", "loud"), ("hidden", "visible")),
        (("--model", "other"), ("two models", "'tiny'", "'other'")),
        (("--task", "text_file:path=/no/such/file"), ("/no/such/file",)),
    ],
)
def test_bad_options(squeeze: Any, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    kept = [] if "--length" in options else ["--length", 40]
    task = [] if "--task" in options else ["--task", "lines"]
    refused(squeeze("tiny", *task, *kept, "--out", tmp_path / "out", *options), *words)
    assert not (tmp_path / "out").exists()


def test_bad_folders(squeeze: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(squeeze("tiny", *SMALL, "--out", tmp_path / "file"), "cannot write", "file")
    refused(squeeze("report", tmp_path), "run.json")
    refused(squeeze("rerun", tmp_path / "none"), "run.json")
    assert squeeze("tiny", *SMALL, "--out", tmp_path / "out").exit_code == 0
    refused(squeeze("tiny", *SMALL, "--seed", 1, "--out", tmp_path / "out"), "other settings", "seeds", "--out")


def test_a_run_goes_on_with_more(squeeze: Any, tmp_path: Path) -> None:
    """Of policies, allocators and budgets, not with fewer; what is done stays, and all is as if it had been one run."""
    more = ("--policy", "streaming_llm/uniform", "--allocator", "zigzag", "--budget", 0.5)
    assert squeeze("tiny", *SMALL, "--out", tmp_path / "grown").exit_code == 0
    before = read_rows(tmp_path / "grown")
    assert squeeze("tiny", *SMALL, *more, "--out", tmp_path / "grown").exit_code == 0
    after = read_rows(tmp_path / "grown")
    assert all(row in after for row in before)
    assert squeeze("tiny", *SMALL, *more, "--out", tmp_path / "at once").exit_code == 0
    assert [row["id"] for row in after] == [row["id"] for row in read_rows(tmp_path / "at once")]
    grown, at_once = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("grown", "at once"))
    assert grown["settings"] == at_once["settings"]
    assert grown["rows"] == grown["expected"] == at_once["rows"] == 4 * (1 + 3 * 2 + 2)
    refused(squeeze("tiny", *SMALL, "--out", tmp_path / "grown"), "other settings", "policies", "--out")


def test_failures_are_told_by_the_exit_code_and_can_be_tried_again(
    squeeze: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Reading.cut

    def fails(self: Reading, config: Any) -> Any:
        if str(config.allocator) == "uniform":
            raise UnsupportedModelError("not this one")
        return real(self, config)

    with monkeypatch.context() as patch:
        patch.setattr(Reading, "cut", fails)
        result = squeeze("tiny", *SMALL, "--out", tmp_path)
    for again in (result, squeeze("tiny", *SMALL, "--out", tmp_path)):
        assert again.exit_code == 1
        said = " ".join(again.stderr.split())
        for word in ("4 of 12 rows failed", "UnsupportedModelError: not this one", "--retry-failed"):
            assert word in said
    result = squeeze("tiny", *SMALL, "--out", tmp_path, "--retry-failed")
    assert result.exit_code == 0
    assert "failed" not in result.stderr


def test_a_bug_ends_the_run_with_its_traceback(squeeze: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(H2O, "priority", lambda self, tokens, budget: tokens.positoins)
    result = squeeze("tiny", *SMALL, "--out", tmp_path)
    assert result.exit_code == 1
    assert isinstance(result.exception, AttributeError)
    assert "stopped at lines 40 h2o" in " ".join(result.stderr.split())
    assert all(row["error"] is None for row in read_rows(tmp_path))


def test_an_interrupt_leaves_what_is_done(squeeze: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import squeezeattention.evaluation.runner as runner

    real, rows = runner.measure, []

    def stopped(*args: Any) -> Any:
        for row in real(*args):
            rows.append(row)
            if len(rows) == 4:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(runner, "measure", stopped)
    result = squeeze("tiny", *SMALL, "--out", tmp_path)
    assert result.exit_code == 130
    assert "the same command goes on" in " ".join(result.stderr.split())
    assert (tmp_path / "results.jsonl").read_bytes().count(b"\n") == 3
    assert squeeze("tiny", *SMALL, "--out", tmp_path).exit_code == 0
    assert len(rows) == 4 + 9


def test_help(squeeze: Any) -> None:
    shown = squeeze("--help")
    assert shown.exit_code == 0
    for option in ("--task", "--question", "--quick", "--out"):
        assert option in shown.stdout
    for name in ("report", "rerun"):
        assert "--json" in squeeze(name, "--help").stdout
    assert squeeze("--no-such-option").exit_code == 2


def test_tasks_are_listed() -> None:
    result = CliRunner().invoke(app, ["tasks", "--json"])
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert list(data) == [*TASKS.names(), *DATASETS.names()]
    shown = CliRunner().invoke(app, ["tasks"])
    assert shown.exit_code == 0
    for name, entry in data.items():
        assert name in shown.stdout
        assert entry["summary"]
