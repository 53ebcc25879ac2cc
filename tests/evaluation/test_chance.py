"""What a model cannot do with the full cache is said, and is no part of the mean over tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from squeezeattention.evaluation import Settings, verdicts
from squeezeattention.evaluation.exercises import chance_of, is_overlap, near_chance_below
from squeezeattention.metrics import METRICS, resolve_metric

from .conftest import Letter, Run


@pytest.mark.parametrize(("level", "left_out"), [(0.0, True), (0.59, True), (0.61, False)])
def test_a_task_near_chance_is_left_out(
    evaluate: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: float, left_out: bool
) -> None:
    """Chance of one of two tasks is a half; both score ``level`` whatever is answered, the other above its chance."""
    monkeypatch.setattr(Letter, "chance", 0.5)
    METRICS.unregister("spread")
    METRICS.register("spread", lambda prediction, answers: level if "b" in answers else 0.7)
    summary = evaluate(replace(settings, tasks=("lines", "letter", "story")), tmp_path)
    found = [(one["task"], one["score"], one["chance"]) for one in summary["near_chance"]]
    assert found == ([("letter", level, 0.5)] if left_out else [])
    together = [cell for cell in summary["results"] if cell["task"] == "all tasks"]
    assert (not together) == left_out  # one task is no mean
    assert any("Near chance" in text and "letter at 40" in text for text in verdicts(summary)) == left_out


def test_overlap_is_no_share_of_right_answers() -> None:
    """A summary that shares 8 % of its pairs of words with the reference is a good one; another article's has 0.3 %."""
    assert near_chance_below("xsum:path=nowhere") < 0.05
    assert near_chance_below("longbench_multi_news:path=nowhere") == pytest.approx(0.16)
    assert near_chance_below("facts") == pytest.approx(0.1)
    assert is_overlap("cnn_dailymail:path=nowhere")
    assert not is_overlap("hotpotqa:path=nowhere")
    other = resolve_metric("rouge2")("The mayor opened a new bridge over the river.", ["Rain stopped play at Lord's."])
    assert other <= near_chance_below("xsum")


def test_chance_is_known_without_data() -> None:
    assert chance_of("vt:chains=2") == 0.5
    assert chance_of("facts:path=nowhere.txt") == 0.0
    assert chance_of("samsum:path=nowhere") == 0.07
    assert chance_of("hotpotqa:path=nowhere") == 0.0
