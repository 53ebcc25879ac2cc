"""The bootstrap, the bytes for a share of the score, and what a summary is made of."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squeezeattention import BudgetPlan
from squeezeattention.evaluation import Settings, first_tables, overview_tables, results_table, verdicts, wins_table
from squeezeattention.evaluation.bootstrap import bootstrap, differences
from squeezeattention.evaluation.columns import columns_for, labels, win_columns
from squeezeattention.evaluation.figures import pictures
from squeezeattention.evaluation.reach import bytes_to_reach
from squeezeattention.evaluation.summary import ALL, summary_of


def test_interval_of_a_mean_of_known_spread() -> None:
    """100 draws of 0 and 1, half and half: the mean's standard error is 0.05, so 1.96 of them reach 0.098."""
    found = bootstrap([[[float(i % 2)] for i in range(100)]])
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.402, abs=0.02)
    assert found.high == pytest.approx(0.598, abs=0.02)
    assert found == bootstrap([[[float(i % 2)] for i in range(100)]])


def test_contexts_are_drawn_and_not_questions() -> None:
    """Ten times the same answer within a context says no more than once."""
    rng = random.Random(0)
    once = [[float(rng.random() < 0.5)] for _ in range(40)]
    often = [scores * 10 for scores in once]
    assert bootstrap([often]) == pytest.approx(bootstrap([once]))
    spread_out = [[value] for scores in often for value in scores]
    wide, narrow = bootstrap([often]), bootstrap([spread_out])
    assert wide.low is not None
    assert narrow.low is not None
    assert wide.mean - wide.low > 2.5 * (narrow.mean - narrow.low)


def test_contexts_with_more_questions_weigh_more_within_a_task_and_tasks_weigh_the_same() -> None:
    first, second = [[1.0] * 3, [0.0]] * 3, [[0.0], [0.0]] * 3
    assert bootstrap([first]).mean == 0.75
    assert bootstrap([first, second]).mean == 0.375


def test_no_spread_and_too_few_contexts() -> None:
    assert bootstrap([[[1.0]] * 9]) == (1.0, 1.0, 1.0)
    assert bootstrap([[[1.0], [0.0]]]) == (0.5, None, None)
    assert bootstrap([[[1.0]] * 9, [[0.0]]]) == (0.5, None, None)


def test_paired_differences_are_surer_than_their_parts() -> None:
    rng = random.Random(1)
    first = [[rng.random()] for _ in range(30)]
    second = [[score - 0.1 + 0.01 * rng.random()] for (score,) in first]
    found = bootstrap([differences(first, second)])
    assert found.low is not None
    assert found.high is not None
    assert 0.08 < found.low < found.mean < found.high < 0.11
    assert found.high - found.low < 0.01


@pytest.mark.parametrize(
    ("points", "target", "expected"),
    [
        ([(100, 0.0), (200, 0.5), (300, 1.0)], 0.75, ("reached", 250.0)),
        ([(300, 1.0), (100, 0.0), (200, 0.5)], 0.5, ("reached", 200.0)),
        ([(100, 0.2), (200, 0.6)], 0.7, ("not_reached", None)),
        ([(100, 0.8), (200, 0.9)], 0.7, ("at_most", 100)),
        ([(100, 0.8), (200, 0.4), (300, 0.8)], 0.6, ("reached", 250.0)),  # reached, lost, reached again: not at 100
        ([(100, 0.8), (200, 0.4)], 0.6, ("not_reached", None)),
        ([], 0.5, ("not_reached", None)),
        ([(100, 0.0)], 0.0, ("undefined", None)),
    ],
)
def test_bytes_to_reach(points: list[tuple[float, float]], target: float, expected: tuple[str, float | None]) -> None:
    assert bytes_to_reach(points, target) == expected


# ------------------------------------------------------------------- summary


def _row(settings: Settings, task: str, index: int, config: int, scores: list[float], **more: Any) -> dict[str, Any]:
    made = settings.configs()[config]
    held = 1000 if config == 0 else 200 + 10 * index
    row: dict[str, Any] = {
        "id": f"{task}/40/0/{index}/{made.id}", "task": task, "length": 40, "seed": 0, "index": index,
        "digest": str(index), "config": made.to_dict(), "kind": "questions", "scores": scores, "error": None,
        "answers": ["x"] * len(scores), "answer_tokens": [4] * len(scores), "losses": None, "bytes": held,
        "peak_bytes": 1000, "full_bytes": 1000, "index_bytes": 7, "cut_bytes": held, "plans": [],
    }  # fmt: skip
    return {**row, **more}


def _summary(settings: Settings, rows: list[dict[str, Any]]) -> dict[str, Any]:
    run = {"settings": settings.to_dict(), "model": {}, "data": {"split": {}, "metrics": {}}}
    return summary_of(run, sorted(rows, key=lambda row: str(row["id"])))


def _cell(summary: dict[str, Any], task: str, name: str) -> dict[str, Any]:
    (cell,) = (cell for cell in summary["results"] if (cell["task"], cell["id"]) == (task, name))
    return cell


def test_summary_of_known_rows(settings: Settings) -> None:
    """Uniform scores 0.5 and squeeze 0.75 on every context of "lines", squeeze fails twice on "letter"."""
    scores = {0: [1.0, 1.0], 1: [1.0, 0.0], 2: [1.0, 0.5]}
    plan = {"signal": "cosine", "signal_values": [0.5, 0.7]}
    rows = [
        _row(settings, "lines", index, config, scores[config], plans=[plan] if config else [])
        for index in range(6)
        for config in scores
    ]
    rows += [_row(settings, "letter", index, config, [1.0]) for index in range(6) for config in (0, 1)]
    rows += [_row(settings, "letter", index, 2, [1.0]) for index in range(4)]
    failed = {"error": {"type": "Boom", "text": "!"}, "bytes": None, "cut_bytes": None, "answer_tokens": None}
    rows += [_row(settings, "letter", index, 2, [0.0], **failed) for index in (4, 5)]
    summary = _summary(settings, rows)
    squeeze = "streaming_llm/squeeze/0.3"
    cell = _cell(summary, "lines", squeeze)
    assert (cell["score"], cell["low"], cell["high"]) == (0.75, 0.75, 0.75)
    assert (cell["n_samples"], cell["n_questions"], cell["n_failed"]) == (6, 12, 0)
    assert (cell["bytes"], cell["peak_bytes"], cell["share"]) == (225, 1000, 0.225)
    assert cell["minus_uniform"] == {"n_samples": 6, "score": 0.25, "low": 0.25, "high": 0.25}
    cell = _cell(summary, "letter", squeeze)
    assert cell["score"] == pytest.approx(4 / 6)
    assert cell["n_failed"] == 2
    assert cell["bytes"] == 215  # of those that did not fail
    assert cell["minus_uniform"]["score"] == pytest.approx(-2 / 6)
    cell = _cell(summary, ALL, squeeze)
    assert cell["score"] == pytest.approx((0.75 + 4 / 6) / 2)
    assert cell["n_questions"] == 18
    assert _cell(summary, "lines", "full")["minus_uniform"] is None
    reach = {(e["task"], e["allocator"], e["share"]): (e["status"], e["bytes"]) for e in summary["reach"]}
    assert reach["lines", "squeeze", 0.9] == ("not_reached", None)
    assert reach["letter", "uniform", 0.95] == ("at_most", 225)
    assert summary["signals"] == [
        {"signal": "cosine", "task": "lines", "length": 40, "n_samples": 6, "mean": [0.5, 0.7]}
    ]
    assert summary["errors"] == [{"type": "Boom", "text": "!", "n": 2, "first": f"letter/40/0/4/{squeeze}"}]
    assert "prefill_seconds" not in str(summary)
    text = " ".join(verdicts(summary))
    assert summary["against_uniform"] == [
        {"kind": "questions", "allocator": "squeeze", "pairs": 2, "better": 1, "worse": 0, "mean": -0.041666}
    ]
    assert "2 rows failed and count as 0, most often with Boom" in text
    assert "as few as 6 contexts" in text


def test_likelihoods_stay_apart_from_scores(settings: Settings) -> None:
    losses = {"kind": "continuation", "answers": None, "answer_tokens": None, "losses": [math.log(2), math.log(2)]}
    rows = [_row(settings, "lines", index, config, [1.0]) for index in range(6) for config in range(3)]
    rows += [_row(settings, "letter", index, config, [0.5]) for index in range(6) for config in range(3)]
    rows += [_row(settings, "story", index, config, [0.5], **losses) for index in range(6) for config in range(3)]
    summary = _summary(settings, rows)
    assert _cell(summary, ALL, "full")["score"] == 0.75
    assert _cell(summary, "story", "full")["nats_per_token"] == pytest.approx(math.log(2), abs=1e-6)
    assert _cell(summary, "story", "full")["kind"] == "continuation"
    assert [title for title, _ in first_tables(summary)] == ["all tasks, 40 tokens", "story, 40 tokens"]
    assert [picture.name for picture in pictures(summary)] == [
        "accuracy_all-tasks_40.png", "accuracy_lines_40.png", "accuracy_letter_40.png", "accuracy_story_40.png",
    ]  # fmt: skip


def _story(settings: Settings, losses: dict[int, list[float]]) -> dict[str, Any]:
    """A summary of continuations with the given losses of each configuration, a context each."""
    kind = {"kind": "continuation", "answers": None, "answer_tokens": None}
    return _summary(settings, [
        _row(settings, "story", index, config, [math.exp(-loss)], losses=[loss], **kind)
        for config, found in losses.items() for index, loss in enumerate(found)
    ])  # fmt: skip


HARD = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]  # contexts differ by far more than methods


def test_likelihoods_are_told_in_nats_and_paired(settings: Settings) -> None:
    losses = {0: HARD, 1: [loss + 0.3 for loss in HARD], 2: [loss + 0.1 for loss in HARD]}
    summary = _story(settings, losses)
    cell = _cell(summary, "story", "streaming_llm/squeeze/0.3")
    assert cell["nats_per_token"] == pytest.approx(3.6)
    assert cell["nats_low"] < 3.0 < 4.0 < cell["nats_high"]
    assert (cell["nats_added"], cell["nats_added_low"], cell["nats_added_high"]) == (0.1, 0.1, 0.1)
    assert [cell["minus_uniform"][name] for name in ("nats", "nats_low", "nats_high")] == [-0.2, -0.2, -0.2]
    assert _cell(summary, "story", "full")["nats_added"] == 0
    (wins,) = summary["against_uniform"]
    assert (wins["better"], wins["worse"], wins["mean"]) == (1, 0, -0.2)
    (worse,) = _story(settings, {0: losses[0], 1: losses[2], 2: losses[1]})["against_uniform"]
    assert (worse["better"], worse["worse"], worse["mean"]) == (0, 1, 0.2)
    shown = {column.title: column.text(cell) for column in columns_for([cell])}
    assert "score" not in shown
    assert (shown["nats"], shown["-uniform"], shown["-uniform, 95 %"]) == ("3.600", "-0.200*", "-0.200 to -0.200")
    assert {column.title: column.text(wins) for column in win_columns([wins])}["mean"] == "-0.200 nats"
    reach = {(e["allocator"], e["share"]): e["status"] for e in summary["reach"]}
    assert reach == {
        ("uniform", 0.9): "not_reached", ("uniform", 0.95): "not_reached",
        ("squeeze", 0.9): "at_most", ("squeeze", 0.95): "not_reached",  # 0.1 of 0.105 and 0.051 nats
    }  # fmt: skip


def test_a_failed_continuation_has_no_loss_and_is_counted(settings: Settings) -> None:
    losses = {config: HARD for config in range(3)}
    failed = {"error": {"type": "Boom", "text": "!"}, "losses": None, "bytes": None, "cut_bytes": None}
    kind = {"kind": "continuation", "answer_tokens": None}
    rows = [
        _row(settings, "story", index, config, [math.exp(-loss)], losses=[loss], **kind)
        for config, found in losses.items() for index, loss in enumerate(found)
    ]  # fmt: skip
    rows[-1].update(failed, scores=[0.0])
    cell = _cell(_summary(settings, rows), "story", "streaming_llm/squeeze/0.3")
    assert cell["nats_per_token"] == 3.0
    assert cell["nats_added"] == cell["minus_uniform"]["nats"] == 0
    (column,) = (column for column in columns_for([cell]) if column.title == "failed")
    assert (column.text(cell), column.from_width) == ("1", 0)
    for row in rows[-6:]:
        row.update(failed, scores=[0.0])
    summary = _summary(settings, rows)
    cell = _cell(summary, "story", "streaming_llm/squeeze/0.3")
    assert (cell["nats_per_token"], cell["nats_added"], cell["minus_uniform"]["nats"]) == (None, None, None)
    shown = {column.title: column.text(cell) for column in columns_for([cell])}
    assert (shown["nats"], shown["95 %"], shown["-uniform"]) == ("–", "–", "")
    assert summary["against_uniform"] == []
    assert [picture.name for picture in pictures(summary)] == ["accuracy_story_40.png"]


def test_losses_are_drawn_where_they_lie(settings: Settings) -> None:
    """On an axis that fits them with their intervals: they are a few hundredths of anything."""
    rng = random.Random(0)
    losses = {0: HARD, **{config: [loss + 0.05 * config * rng.random() for loss in HARD] for config in (1, 2)}}
    settings = replace(settings, ps=(0.3, 0.6))
    losses[3] = losses[2]
    summary = _story(settings, losses)
    cells = [cell for cell in summary["results"] if cell["policy"]]
    accuracy, sweep = pictures(summary)
    assert "loss against" in accuracy.caption
    assert "3.500 nats a token" in accuracy.caption
    for picture in (accuracy, sweep):
        axes = picture.figure.axes[0]
        low, high = axes.get_ylim()
        assert axes.get_ylabel().startswith("added nats a token,\nless is better")
        assert -0.02 < low < 0
        assert max(cell["nats_added_high"] for cell in cells) < high < 0.12


def test_scores_are_drawn_on_the_whole_range(settings: Settings) -> None:
    rows = [_row(settings, "lines", index, config, [0.5]) for index in range(6) for config in range(3)]
    (picture,) = pictures(_summary(settings, rows))
    assert picture.figure.axes[0].get_ylim() == (-4, 104)
    assert picture.figure.axes[0].get_ylabel() == "score, % (n = 6, 95 % intervals)"


def test_pictures_of_tasks_with_like_names_do_not_overwrite_each_other(settings: Settings) -> None:
    tasks = ["a-b", "a_b", "a b", "A_b", "a", "a_1", "all_tasks", "ä", "ö", "x" * 300, "x" * 301]
    tasks = [f"text_file:path={task}" for task in tasks] + ["lines", "letter"]
    rows = [_row(settings, task, 0, config, [0.25]) for task in tasks for config in range(3)]
    names = [picture.name for picture in pictures(_summary(replace(settings, tasks=tuple(tasks)), rows))]
    assert len({name.casefold() for name in names}) == len(names) == len(tasks) + 1  # and all tasks together
    assert all(re.fullmatch(r"[a-z0-9_.-]{1,120}", name) for name in names)


def test_differences_have_no_sign_of_nothing_and_columns_names_of_their_own(settings: Settings) -> None:
    rows = [_row(settings, "lines", index, config, [0.5]) for index in range(6) for config in range(2)]
    rows += [_row(settings, "lines", index, 2, [0.5 - 1e-4 * (index % 2)]) for index in range(6)]
    for kind in ("questions", "continuation"):
        summary = _summary(settings, [{**row, "kind": kind, "losses": [-math.log(row["scores"][0])]} for row in rows])
        cell = _cell(summary, "lines", "streaming_llm/squeeze/0.3")
        columns = columns_for([cell])
        assert len({column.title for column in columns}) == len(columns)
        shown = {column.title: column.text(cell) for column in columns}
        digits = 1 if kind == "questions" else 3
        assert shown["-uniform"].strip("* ") == f"{0:.{digits}f}"
        assert shown["-uniform, 95 %"] == f"{0:.{digits}f} to {0:.{digits}f}"


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        (["/very/long/way/plan.json"], ["…/plan.json"]),
        (["plan.json"], ["plan.json"]),
        (["/a/b/plan.json", "/a/c/plan.json"], ["…/b/plan.json", "…/c/plan.json"]),
        (["a/b/plan.json", "b/plan.json", "plan.json"], ["a/b/plan.json", "b/plan.json", "plan.json"]),
        (["x/losses.json", "x/losses.json:by=alone"], ["…/losses.json", "…/losses.json alone"]),
        (["x/one.json", "uniform", None], ["…/one.json", "uniform", "full cache"]),
    ],
)
def test_paths_are_named_by_as_much_of_their_end_as_tells_them_apart(paths: list[str | None], shown: list[str]) -> None:
    assert [labels(paths)[path] for path in paths] == shown


def test_long_names_leave_room_for_the_numbers(settings: Settings, tmp_path: Path) -> None:
    """At 80 columns; names go on in the next line, so that nothing is cut off."""
    console = pytest.importorskip("rich.console").Console(width=80)
    paths = [str(tmp_path / f"plan-{letter * 40}.json") for letter in "ab"]
    for path in paths:
        BudgetPlan.from_budgets([1, 2, 3, 4]).save(path)
    settings = replace(settings, allocators=("uniform", *paths))
    rows = [_row(settings, "lines", index, config, [config / 8]) for index in range(6) for config in range(4)]
    summary = _summary(settings, rows)
    for table in (
        results_table([cell for cell in summary["results"] if cell["task"] == "lines"]),
        wins_table(summary["against_uniform"]),
        *overview_tables(summary),
    ):
        with console.capture() as capture:
            console.print(table)
        text = capture.get()
        assert max(map(len, text.splitlines())) <= 80
        assert "a" * 20 in text
        assert not re.search(r"…(?!/)", text)
        assert "25.0" in text


@pytest.mark.parametrize("kind", ["questions", "continuation"])
@pytest.mark.parametrize("width", [80, 92, 110, 122, 134, 148, 154, 166])
def test_failures_are_shown_at_any_width(settings: Settings, kind: str, width: int) -> None:
    """And take no room where there are none; no number is cut off for them."""
    console = pytest.importorskip("rich.console").Console(width=width)
    rows = [
        _row(settings, "lines", index, config, [0.25], kind=kind, losses=[-math.log(0.25)])
        for index in range(6) for config in range(3)
    ]  # fmt: skip

    def shown() -> str:
        cells = [cell for cell in _summary(settings, rows)["results"] if cell["task"] == "lines"]
        with console.capture() as capture:
            console.print(results_table(cells, width))
        return str(capture.get())

    assert ("failed" in shown()) == (width >= 166)
    rows[-1].update(error={"type": "Boom", "text": "!"}, losses=None, scores=[0.0])
    text = shown()
    assert "failed" in text
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    (row,) = (line for line in text.splitlines() if "squeeze" in line)
    assert row.split()[-1] == "1"


def test_differences_are_of_the_samples_that_both_have(settings: Settings) -> None:
    rows = [_row(settings, "lines", index, 1, [index / 10]) for index in range(6)]
    rows += [_row(settings, "lines", index, 2, [index / 10 + 0.1]) for index in range(3, 6)]
    difference = _cell(_summary(settings, rows), "lines", "streaming_llm/squeeze/0.3")["minus_uniform"]
    assert difference["n_samples"] == 3
    assert difference["score"] == pytest.approx(0.1)
    assert "not finished: 9 of 18" in " ".join(verdicts(_summary(settings, rows)))


def test_an_overview_of_many_tasks_is_split(settings: Settings) -> None:
    tasks = tuple(f"text_file:path={letter * 20}" for letter in "abcde")
    settings = replace(settings, tasks=tasks)
    rows = [_row(settings, task, 0, config, [0.25]) for task in tasks for config in range(3)]
    tables = list(overview_tables(_summary(settings, rows), 80))
    assert [len(table.columns) for table in tables] == [2] * 5
    assert {table.row_count for table in tables} == {3}
    assert [len(table.columns) for table in overview_tables(_summary(settings, rows), 160)] == [4, 3]
