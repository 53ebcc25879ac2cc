"""The bootstrap, the bytes for a share of the score, and what a summary is made of."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from squeezeattention.evaluation import Settings, first_tables, overview_tables, verdicts
from squeezeattention.evaluation.bootstrap import bootstrap, differences
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
    rows += [_row(settings, "letter", index, config, [0.0]) for index in range(6) for config in range(3)]
    rows += [_row(settings, "story", index, config, [0.5], **losses) for index in range(6) for config in range(3)]
    summary = _summary(settings, rows)
    assert _cell(summary, ALL, "full")["score"] == 0.5
    assert _cell(summary, "story", "full")["nats_per_token"] == pytest.approx(math.log(2), abs=1e-6)
    assert _cell(summary, "story", "full")["kind"] == "continuation"
    assert [title for title, _ in first_tables(summary)] == ["all tasks, 40 tokens", "story, 40 tokens"]
    assert [picture.name for picture in pictures(summary)] == [
        "accuracy_all_tasks_40.png", "accuracy_lines_40.png", "accuracy_letter_40.png", "accuracy_story_40.png",
    ]  # fmt: skip


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
