"""Rows: what is measured, what is recorded of a failure, and that nothing is done twice or lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import squeezeattention.evaluation.exercises as exercises
import squeezeattention.evaluation.measure as measuring
import squeezeattention.evaluation.runner as runner
from squeezeattention import SqueezeCache
from squeezeattention.datasets import Dataset
from squeezeattention.errors import ConfigError, EvaluationError, MissingExtraError, UnsupportedModelError
from squeezeattention.evaluation import Settings
from squeezeattention.evaluation.config import Config
from squeezeattention.evaluation.folder import ROWS, RUN, Results, read_rows
from squeezeattention.evaluation.grid import Unit
from squeezeattention.evaluation.reading import Reading
from squeezeattention.extras import require
from squeezeattention.signals import Cosine
from squeezeattention.tasks import TASKS, Question, Sample
from squeezeattention.tasks.driving import forward, read
from squeezeattention.testing import tiny_model

from .conftest import Letters, Lines, Run, spread


def by_id(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in read_rows(folder)}


def test_rows_have_what_was_measured(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    evaluate(settings, tmp_path)
    rows = by_id(tmp_path)
    assert set(rows) == {unit.id for unit in settings.units()}
    full = rows["lines/40/0/1/full"]
    token = 4 * 2 * 2 * 8 * 4  # bytes: layers, keys and values, heads, width, fp32
    assert full["cut_bytes"] == 34 * token
    assert full["bytes"] == full["full_bytes"] == full["peak_bytes"] == (34 + 7) * token  # "how?", three fed answers
    assert full["details"]["first"]
    for row in rows.values():
        assert row["error"] is None
        assert row["scores"]
        assert row["prefill_seconds"] >= 0 <= row["decode_seconds"]
        if row["config"]["policy"] is not None:
            (plan,) = row["plans"]
            assert len(plan["budgets"]) == len(plan["groups"]) == 4
            if row["config"]["allocator"] == "uniform":  # measures nothing
                assert plan["signal_values"] is None
            else:
                assert len(plan["signal_values"]) == 4
            assert row["bytes"] <= sum(plan["budgets"]) * 2 * 2 * 8 * 4
            assert row["cut_bytes"] == row["bytes"] < row["full_bytes"]
            assert row["full_bytes"] == rows[f"{row['task']}/40/0/{row['index']}/full"]["bytes"]
            prompt = rows[f"{row['task']}/40/0/{row['index']}/full"]["cut_bytes"]
            assert row["cut_bytes"] < row["peak_bytes"] == prompt  # which others share, so that it stays whole
        if row["task"] == "lines":
            assert row["answer_tokens"] == [len(text) for text in row["answers"]] == [3, 2, 4]
            assert row["scores"] == [spread(text, ["a"]) for text in row["answers"]]
        if row["task"] == "story":
            assert len(row["losses"]) == 9
            assert 0 < row["scores"][0] < 1


@pytest.mark.parametrize("question", ["hidden", "visible"])
def test_a_configuration_alone_gives_the_rows_that_it_has_in_a_grid(
    evaluate: Run, settings: Settings, tmp_path: Path, question: str
) -> None:
    grid = replace(
        settings, tasks=("lines", "story"), samples=1, policies=("h2o", "snapkv:window=8", "echo"),
        allocators=(
            "uniform", "squeeze", "squeeze:signal=span", "squeeze:prefill=bounded", "probe", "global", "random",
        ),
        budgets=("0.3", "12"), question=question,
    )  # fmt: skip
    evaluate(grid, tmp_path / "grid")
    together = by_id(tmp_path / "grid")
    configs = grid.configs()
    for number, config in enumerate(configs[1:]):
        alone = replace(
            grid, policies=(str(config.policy),), allocators=(str(config.allocator),), budgets=(str(config.budget),)
        )
        evaluate(alone, tmp_path / str(number))
        for name, row in by_id(tmp_path / str(number)).items():
            for column, value in row.items():
                if not column.endswith("_seconds"):
                    assert value == together[name][column], (name, column)
    assert len({str(row["answers"]) + str(row["losses"]) for row in together.values()}) > 10


def test_a_signal_that_a_model_refuses_fails_in_its_rows_alone(
    evaluate: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Cosine, *args: Any) -> None:
        raise UnsupportedModelError("nothing to measure")

    monkeypatch.setattr(Cosine, "see_hidden", refuse)
    evaluate(replace(settings, policies=("h2o",), allocators=("uniform", "squeeze", "probe")), tmp_path)
    for row in by_id(tmp_path).values():
        assert (row["error"] is not None) == (row["config"]["allocator"] == "squeeze")


@pytest.mark.parametrize(("question", "prompts"), [("hidden", 1), ("visible", 3)])
def test_a_prompt_is_read_once_for_all_that_it_serves(
    evaluate: Run, model: Any, settings: Settings, tmp_path: Path, question: str, prompts: int
) -> None:
    lengths: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    grid = replace(
        settings, tasks=("lines",), samples=1, policies=("h2o", "sliding_window"), question=question,
        allocators=("uniform", "squeeze", "random", "pyramid", "zigzag"), budgets=("0.3", "0.5", "12"),
    )  # fmt: skip
    try:
        evaluate(grid, tmp_path)
    finally:
        handle.remove()
    assert sum(length > 30 for length in lengths) == 3 * prompts, lengths  # the full cache and two policies


CACHES = ("full", "streaming_llm/squeeze/0.3")


def by_hand(model: Any, name: str, prompt: str, follows: str, new_tokens: int, caps: int) -> str:
    """Read a prompt, feed the rest letter by letter, and decode greedily."""
    cache: Any = DynamicCache(config=model.config)
    if name != "full":
        cache = SqueezeCache(model, 0.3, "streaming_llm", "squeeze", new_tokens=caps, min_tokens=1)
    read(model, cache, Letters()(prompt).input_ids)
    said: list[int] = []
    for token in Letters()(follows).input_ids:
        logits = forward(model, cache, torch.tensor([[token]]))
    for _ in range(new_tokens):
        said.append(int(logits.argmax()))
        logits = forward(model, cache, torch.tensor([[said[-1]]]))
    return Letters().decode(said)


@pytest.mark.parametrize("mode", ["hidden", "visible"])
def test_answers_are_those_of_a_decode_by_hand(
    evaluate: Run, model: Any, settings: Settings, tmp_path: Path, mode: str
) -> None:
    """No first token comes from a cache that is not cut: the last token of a prompt is fed after it."""
    evaluate(replace(settings, tasks=("lines", "letter"), question=mode), tmp_path)
    rows = by_id(tmp_path)
    for task in ("lines", "letter"):
        sample = TASKS.create(task).sample(len, 40, 0, 0)
        for name in CACHES:
            for question, answer in zip(sample.questions, rows[f"{task}/40/0/0/{name}"]["answers"], strict=True):
                text = sample.context + question.text
                cut = len(text) - 1 if mode == "visible" or task == "letter" else len(sample.context)
                caps = {("hidden", "lines"): 9, ("visible", "lines"): 5}.get((mode, task), 6)
                assert answer == by_hand(model, name, text[:cut], text[cut:], question.max_new_tokens, caps)


def test_losses_of_a_cache_that_keeps_all_are_those_of_one_forward(
    evaluate: Run, model: Any, settings: Settings, tmp_path: Path
) -> None:
    evaluate(replace(settings, tasks=("story",), budgets=("64",)), tmp_path)
    rows = by_id(tmp_path)
    sample = TASKS.create("story").sample(len, 40, 0, 0)
    ids = torch.tensor([Letters()(sample.context + (sample.continuation or "")).input_ids])
    with torch.no_grad():
        wanted = torch.log_softmax(model(ids).logits[0], -1)
    start = len(sample.context)
    losses = [-float(wanted[start + i - 1, ids[0, start + i]]) for i in range(9)]
    for name in ("full", "streaming_llm/uniform/64"):
        row = rows[f"story/40/0/0/{name}"]
        assert row["losses"] == pytest.approx(losses, abs=1e-4)
        assert row["scores"][0] == pytest.approx(float(torch.tensor(losses).mean().neg().exp()), abs=1e-5)


def test_visible_questions_are_part_of_the_prompt(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    evaluate(replace(settings, question="visible", tasks=("lines", "story")), tmp_path / "visible")
    evaluate(replace(settings, tasks=("lines", "story")), tmp_path / "hidden")
    visible, hidden = by_id(tmp_path / "visible"), by_id(tmp_path / "hidden")
    row = visible["lines/40/0/0/streaming_llm/squeeze/0.3"]
    assert len(row["plans"]) == 3
    longest = (34 + 5 - 1) * 4 * 2 * 2 * 8 * 4  # the longest question, but for its last token
    assert row["cut_bytes"] < row["peak_bytes"] <= longest
    assert visible["lines/40/0/0/full"]["peak_bytes"] >= longest
    for name in ("lines/40/0/0/full", "lines/40/0/1/full"):  # nothing is forgotten, so it makes no difference
        assert visible[name]["answers"] == hidden[name]["answers"]
    name = "story/40/0/0/streaming_llm/squeeze/0.3"
    assert visible[name]["losses"] == hidden[name]["losses"]


def test_questions_in_small_batches_and_chunks_give_the_same(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    evaluate(settings, tmp_path / "a")
    evaluate(replace(settings, rows=1, chunk=11), tmp_path / "b")
    a, b = by_id(tmp_path / "a"), by_id(tmp_path / "b")
    assert {name: row["answers"] for name, row in a.items()} == {name: row["answers"] for name, row in b.items()}


def test_the_end_token_ends_an_answer(evaluate: Run, model: Any, settings: Settings, tmp_path: Path) -> None:
    evaluate(settings, tmp_path / "a")
    answer = by_id(tmp_path / "a")["letter/40/0/0/full"]["answers"][0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.generation_config, "eos_token_id", [ord(answer[2]), 127])
        evaluate(settings, tmp_path / "b")
    assert by_id(tmp_path / "b")["letter/40/0/0/full"]["answers"][0] == answer[: answer.index(answer[2])]


def test_a_mistake_ends_the_run_and_is_no_result(
    evaluate: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is an error of the library's own or not: rows of 0 would hide it."""
    for values, error in (
        (lambda self: [0.5, float("nan"), 0.7, float("inf")], ConfigError),
        (lambda self: 1 / 0, ZeroDivisionError),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Cosine, "values", values)
            with pytest.raises(error):
                evaluate(settings, tmp_path)
        assert all(row["error"] is None for row in read_rows(tmp_path))
        assert 0 < len(by_id(tmp_path)) < 18
    assert evaluate(settings, tmp_path)["rows"] == 18  # the same run, mended


def failing(name: str) -> Callable[[Reading, Config], Any]:
    """Cuts that fail for one configuration, the way a GPU runs out of memory."""
    real = Reading.cut

    def cut(self: Reading, config: Config) -> Any:
        if config.id == name:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 9 GiB")
        return real(self, config)

    return cut


@pytest.mark.parametrize("question", ["hidden", "visible"])
@pytest.mark.parametrize("config", ["streaming_llm/squeeze/0.3", "full"])
def test_a_failing_configuration_is_recorded_and_scores_nothing(
    evaluate: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, question: str
) -> None:
    monkeypatch.setattr(Reading, "cut", failing(config))
    summary = evaluate(replace(settings, question=question), tmp_path)
    rows = by_id(tmp_path)
    assert len(rows) == 18
    for row in rows.values():
        failed = row["config"]["id"] == config
        assert (row["error"] is not None) == failed
        if failed:
            assert row["error"] == {"type": "OutOfMemoryError", "text": "out of memory: tried to allocate 9 GiB"}
            assert row["scores"] == [0.0] * (3 if row["task"] == "lines" else 1)
            assert row["bytes"] is None
    assert summary["errors"][0]["n"] == 6
    for cell in summary["results"]:
        assert (cell["n_failed"] > 0) == (cell["id"] == config)
        if cell["id"] == config:
            assert cell["score"] == 0
            assert cell["bytes"] is None
            assert cell["n_samples"] == (4 if cell["task"] == "all tasks" else 2)


def test_what_failed_is_tried_again_when_that_is_asked_for(
    evaluate: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Reading, "cut", failing("streaming_llm/squeeze/0.3"))
        evaluate(settings, tmp_path / "a")
    assert evaluate(settings, tmp_path / "a")["errors"][0]["n"] == 6  # counts as done
    seen: list[tuple[int, int, str]] = []
    summary = evaluate(settings, tmp_path / "a", retry_failed=True, progress=lambda *told: seen.append(told))
    assert [done for done, _, _ in seen] == list(range(12, 19))
    assert summary["errors"] == []
    assert summary == evaluate(settings, tmp_path / "b")
    assert evaluate(settings, tmp_path / "a") == summary  # and what is in the folder can be read again


def test_a_policy_that_a_model_refuses_fails_in_its_rows_alone(
    evaluate: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SqueezeCache.__init__

    def refuse(self: Any, model: Any, budget: Any, policy: Any, *args: Any, **options: Any) -> None:
        if policy.name == "h2o":
            raise UnsupportedModelError("no scores here")
        real(self, model, budget, policy, *args, **options)

    monkeypatch.setattr(SqueezeCache, "__init__", refuse)
    summary = evaluate(replace(settings, policies=("h2o", "streaming_llm")), tmp_path / "a")
    assert {error["type"] for error in summary["errors"]} == {"UnsupportedModelError"}
    assert summary["rows"] == summary["expected"] == 30
    with pytest.raises(UnsupportedModelError, match="no scores"):
        evaluate(replace(settings, policies=("h2o",)), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_mistakes_in_a_metric_are_not_taken_for_failures(
    evaluate: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(prediction: str, answers: Any) -> float:
        return 0.0 if not prediction else 1 / 0

    monkeypatch.setattr(exercises, "resolve_metric", lambda name: broken)
    with pytest.raises(ZeroDivisionError):
        evaluate(settings, tmp_path)


def test_a_metric_that_is_not_installed_is_told_before_any_work(
    evaluate: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(name: str) -> Any:
        return lambda prediction, answers: require("no_such_module", "eval")

    monkeypatch.setattr(exercises, "resolve_metric", lacking)
    with pytest.raises(MissingExtraError, match="no_such_module"):
        evaluate(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Labels(Dataset):
    """A data set with labels and examples: a first line counts, and labels that it names too."""

    metric = "classification"

    def scored_part(self, answer: str) -> str:
        return answer.partition("\n")[0]


def test_data_sets_score_what_counts_of_an_answer() -> None:
    question = Question("kind?", ("red",), 4)
    sample = Sample("labels", 40, 0, 0, "", (question,), details={"classes": ["red", "green"]})
    task = object.__new__(Labels)
    for answer, score in (("red", 1.0), ("red green", 0.5), ("red\ngreen", 1.0), ("green\nred", 0.0)):
        assert exercises.score_answer(task, sample, question, answer) == score


# ------------------------------------------------------------------ resuming


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


def test_a_killed_run_goes_on_from_every_place(
    evaluate: Run, settings: Settings, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at every line boundary, and in the middle of every line, next to both of its ends too."""
    evaluate(settings, finished)
    data = (finished / ROWS).read_bytes()
    whole = (finished / "summary.json").read_bytes()
    lines = data.splitlines(keepends=True)
    ends = [sum(map(len, lines[:count])) for count in range(len(lines) + 1)]
    cuts = {*ends, *(end + 1 for end in ends[:-1]), *(end - 1 for end in ends[1:])}
    cuts |= {end + len(line) // 2 for end, line in zip(ends, lines, strict=False)}
    # Rows need not be measured again: they come from the finished run, but only those that are asked for.
    rows = by_id(finished)
    done: list[str] = []

    def recorded(model: Any, tokenizer: Any, settings: Any, task: Any, configs: Any, key: Any, *more: Any) -> Any:
        for config in configs:
            done.append(Unit(key, config).id)
            yield rows[done[-1]]

    monkeypatch.setattr(runner, "measure", recorded)
    for number, cut in enumerate(sorted(cuts)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / RUN).write_bytes((finished / RUN).read_bytes())
        (folder / ROWS).write_bytes(data[:cut])
        done.clear()
        evaluate(settings, folder)
        kept = data[:cut].count(b"\n")
        assert len(done) == len(lines) - kept
        assert (folder / "summary.json").read_bytes() == whole
        assert sorted((folder / ROWS).read_bytes().splitlines()) == sorted(data.splitlines())
    assert len(cuts) > 3 * len(lines)


def test_a_run_that_was_stopped_measures_the_rest_alone(
    evaluate: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(settings, tmp_path / "whole")
    real, done = measuring.measure, []

    def stopped(*args: Any) -> Any:
        for row in real(*args):
            if len(done) in (4, 9):
                done.append(None)
                raise KeyboardInterrupt
            done.append(row["id"])
            yield row

    monkeypatch.setattr(runner, "measure", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(settings, tmp_path / "parts")
    evaluate(settings, tmp_path / "parts")
    evaluate(settings, tmp_path / "parts")
    names = [name for name in done if name]
    assert sorted(names) == sorted(by_id(tmp_path / "whole"))
    assert len(set(names)) == len(names)
    files = [(tmp_path / folder / "summary.json").read_bytes() for folder in ("whole", "parts")]
    assert files[0] == files[1]


def test_progress_is_told_from_where_the_run_goes_on(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    evaluate(settings, tmp_path, progress=lambda *told: seen.append(told))
    assert [done for done, _, _ in seen] == list(range(19))
    assert {total for _, total, _ in seen} == {18}
    seen.clear()
    evaluate(settings, tmp_path, progress=lambda *told: seen.append(told))
    assert [done for done, _, _ in seen] == [18]


def test_folders_of_other_runs_are_refused_and_left_alone(
    evaluate: Run, model: Any, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(settings, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for change in ({"seeds": (1,)}, {"budgets": ("0.4",)}, {"question": "visible"}, {"samples": 3}):
        with pytest.raises(EvaluationError, match=next(iter(change))):
            evaluate(replace(settings, **change), tmp_path)
    other = tiny_model("llama", vocab_size=128, eos_token_id=None, bos_token_id=None, pad_token_id=None, seed=1)
    with pytest.raises(EvaluationError, match="another model"):
        runner.run(other, Letters(), settings, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / ROWS).write_bytes(before[ROWS][:-20])
    real = Lines.sample
    monkeypatch.setattr(Lines, "sample", lambda *args: replace(real(*args), context="another text"))
    with pytest.raises(EvaluationError, match="is not what it was"):
        evaluate(settings, tmp_path)


@pytest.mark.parametrize("damage", ["not json", '{"no": "id"}', "[]", "repeat"])
def test_damage_that_no_kill_does_is_refused(evaluate: Run, settings: Settings, tmp_path: Path, damage: str) -> None:
    evaluate(settings, tmp_path)
    lines = (tmp_path / ROWS).read_text().splitlines()
    lines[3] = lines[2] if damage == "repeat" else damage
    (tmp_path / ROWS).write_text("\n".join(lines) + "\n")
    with pytest.raises(EvaluationError, match="line 4"):
        evaluate(settings, tmp_path)


def test_results_without_their_settings_are_refused(evaluate: Run, settings: Settings, tmp_path: Path) -> None:
    evaluate(settings, tmp_path)
    for text, word in (("{", "damaged"), ("{}", "format"), ('{"format": "squeezeattention-evaluation"}', "version")):
        (tmp_path / RUN).write_text(text)
        with pytest.raises(EvaluationError, match=word):
            evaluate(settings, tmp_path)
    (tmp_path / RUN).unlink()
    with pytest.raises(EvaluationError, match=RUN):
        evaluate(settings, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="cannot write"):
        evaluate(settings, tmp_path / "file")


def test_two_processes_cannot_write_to_one_folder(
    evaluate: Run, model: Any, settings: Settings, tmp_path: Path
) -> None:
    pytest.importorskip("fcntl")
    with (
        Results(tmp_path, runner.describe_run(model, settings)),
        pytest.raises(EvaluationError, match="another process"),
    ):
        evaluate(settings, tmp_path)
    assert evaluate(settings, tmp_path)["rows"] == 18


def test_another_machine_is_added_to_the_record(
    evaluate: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(settings, tmp_path)
    run = json.loads((tmp_path / RUN).read_text())
    assert set(run["environments"][0]) >= {"python", "torch", "transformers", "squeezeattention", "gpus"}
    assert run["data"]["items"] == [key.id for key in settings.samples_of_all()]
    assert run["data"]["split"] == dict.fromkeys(settings.tasks, "not stated")
    assert run["model"]["dtype"] == "float32"
    monkeypatch.setattr(runner, "environment", lambda: {"python": "4.0"})
    evaluate(settings, tmp_path)
    evaluate(settings, tmp_path)
    assert json.loads((tmp_path / RUN).read_text())["environments"] == [run["environments"][0], {"python": "4.0"}]


def test_tasks_that_do_not_fit_are_refused_before_anything_is_written(
    evaluate: Run, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="at least 20"):
        evaluate(replace(settings, lengths=(40, 10)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
