"""Pictures, the page, and repeating a run."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest

import squeezeattention.evaluation.runner as runner
from squeezeattention.errors import EvaluationError
from squeezeattention.evaluation import Settings, compare, plan_studies, write_report
from squeezeattention.evaluation.folder import ROWS
from squeezeattention.testing import tiny_model

from .conftest import Letters, Run


class Page(HTMLParser):
    """Collects what a page would load, and whether its tags are balanced."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.metas: list[dict[str, str | None]] = []
        self.terms: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "meta":
            self.metas.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "dt":
            self.terms[data] = ""
        elif self.open and self.open[-1] == "dd":
            self.terms[list(self.terms)[-1]] += data

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_page_that_needs_nothing_else(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    evaluate(replace(settings, tasks=("lines", "story"), ps=(0.3, 0.6), samples=5), tmp_path)
    report = write_report(tmp_path)
    names = [path.name for path in report.files]
    assert names[0] == "summary.json"
    assert names[-1] == "report.html"
    assert {"accuracy_lines_40.png", "accuracy_story_40.png", "p_sweep_lines_40.png", "signals.png"} <= set(names)
    text = report.files[-1].read_text()
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.sources) == page.tags.count("img") == len(names) - 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "://" not in text
    assert "url(" not in text
    for word in ("lines, 40 tokens", "streaming_llm", "squeeze p=0.3", "not reached", "machine 1", "fingerprint"):
        assert word in text
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.metas
    assert page.terms["ps"] == "0.3, 0.6"
    assert page.terms["seeds"] == "0"
    assert page.terms["chunk"] == "–"
    assert all(page.terms.values())
    assert "float:" not in text  # an empty value must not let the next ones move up
    for path in report.files[1:-1]:
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[1] > 600
        assert pixels[..., :3].std() > 0.05


def test_an_empty_setting_keeps_its_place(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    evaluate(settings, tmp_path)
    terms = Page(write_report(tmp_path).files[-1].read_text()).terms
    assert settings.ps == ()
    assert (terms["ps"], terms["question"]) == ("–", "hidden")


def test_what_a_model_says_cannot_break_the_page(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    evaluate(replace(settings, model="<b>&\"'"), tmp_path)
    text = write_report(tmp_path).files[-1].read_text()
    assert "<b>" not in text
    assert Page(text).open == []


def test_an_unfinished_run_can_be_reported(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    evaluate(settings, tmp_path)
    lines = (tmp_path / ROWS).read_bytes().splitlines(keepends=True)
    (tmp_path / ROWS).write_bytes(b"".join(lines[:5]) + lines[5][:30])
    report = write_report(tmp_path)
    assert report.summary["rows"] == 5
    assert "13 of 18 rows are missing" in report.files[-1].read_text()
    (tmp_path / ROWS).write_bytes(b"")
    with pytest.raises(EvaluationError, match="no results yet"):
        write_report(tmp_path)
    with pytest.raises(EvaluationError, match=r"run\.json"):
        write_report(tmp_path / "nowhere")


def test_a_run_in_which_everything_failed_can_be_reported(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    evaluate(settings, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    for row in rows:
        row.update(error={"type": "Boom", "text": "<!>"}, scores=[0.0], bytes=None, peak_bytes=None, full_bytes=None)
        row.update(index_bytes=None, cut_bytes=None, losses=None, answer_tokens=None, plans=None)
    (tmp_path / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = write_report(tmp_path)
    assert [path.name for path in report.files] == ["summary.json", "report.html"]
    assert "&lt;!&gt;" in report.files[-1].read_text()


def test_signals_of_earlier_releases_are_read(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    before = evaluate(settings, tmp_path)
    assert before["signals"]
    assert "low values" in before["signal_direction"]
    path = tmp_path / ROWS
    path.write_bytes(path.read_bytes().replace(b'"signal_values"', b'"importance"'))
    assert write_report(tmp_path).summary == before
    assert plan_studies(tmp_path)[0].study.all.signal


# --------------------------------------------------------------------- rerun


def test_a_repeated_run_agrees(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    for name in ("a", "b"):
        evaluate(settings, tmp_path / name)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.agrees
    assert (found.rows, found.compared, found.same_scores, found.same_answers, found.largest) == (18, 18, 18, 18, 0.0)
    assert (tmp_path / "a/summary.json").read_bytes() == (tmp_path / "b/summary.json").read_bytes()
    assert "agree" in str(found)


def test_what_does_not_agree_is_named(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    for name in ("a", "b"):
        evaluate(settings, tmp_path / name)
    rows = [json.loads(line) for line in (tmp_path / "b" / ROWS).read_text().splitlines()]
    rows[2]["scores"][0] += 0.25
    (tmp_path / "b" / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert not found.agrees
    assert found.first == rows[2]["id"]
    assert found.largest == pytest.approx(0.25)
    assert "1 of 17 rows differ" in str(found)
    assert "1 rows are missing" in str(found)


def test_runs_of_other_models_or_texts_cannot_be_compared(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    evaluate(settings, tmp_path / "a")
    other = tiny_model("llama", vocab_size=128, eos_token_id=None, bos_token_id=None, pad_token_id=None, seed=1)
    runner.run(other, Letters(), settings, tmp_path / "b")
    with pytest.raises(EvaluationError, match="different models"):
        compare(tmp_path / "a", tmp_path / "b")
    evaluate(settings, tmp_path / "c")
    path = tmp_path / "c" / ROWS
    path.write_text(path.read_text().replace('"digest": "', '"digest": "0'))
    with pytest.raises(EvaluationError, match="is not the same"):
        compare(tmp_path / "a", tmp_path / "c")
