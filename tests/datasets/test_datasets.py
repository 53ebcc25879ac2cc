"""Data sets as samples."""

import csv
import json
import random
import zipfile
from pathlib import Path

import pytest

from squeezeattention.datasets import DATASETS, Dataset, published_prompt
from squeezeattention.datasets.longbench import LONGBENCH, TASKS
from squeezeattention.errors import ConfigError, InputError, UnknownNameError

#: What the benchmark publishes as dataset2maxlen.json.
MAX_NEW_TOKENS = {
    "narrativeqa": 128, "qasper": 128, "multifieldqa_en": 64, "multifieldqa_zh": 64, "hotpotqa": 32, "2wikimqa": 32,
    "musique": 32, "dureader": 128, "gov_report": 512, "qmsum": 512, "multi_news": 512, "vcsum": 512, "trec": 64,
    "triviaqa": 32, "samsum": 128, "lsht": 64, "passage_count": 32, "passage_retrieval_en": 32,
    "passage_retrieval_zh": 32, "lcc": 64, "repobench-p": 64,
}  # fmt: skip


def words(text: str) -> int:
    """A tokenizer whose tokens are words."""
    return len(text.split())


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def longbench_row(index: int, **changed) -> dict:
    return {
        "input": f"What is number {index}?",
        "context": f"Number {index} is {index * 7}. " + "Nothing else matters here. " * 20,
        "answers": [str(index * 7), f"it is {index * 7}"],
        "length": 100,
        "dataset": "hotpotqa",
        "language": "en",
        "all_classes": None,
        "_id": f"item-{index}",
        **changed,
    }


@pytest.fixture
def hotpotqa(tmp_path):
    return write_jsonl(tmp_path / "data" / "hotpotqa.jsonl", [longbench_row(i) for i in range(12)])


def samples(dataset, n, seed=0, length=10_000, count=words):
    return [dataset.sample(count, length, seed, index) for index in range(n)]


def items(found):
    return [sample.details["item"] for sample in found]


# ------------------------------------------------------------------ LongBench


def test_rules_of_longbench():
    recipes = {recipe.name.removeprefix("longbench_"): recipe for recipe in LONGBENCH}
    assert {name: recipe.max_new_tokens for name, recipe in recipes.items()} == MAX_NEW_TOKENS
    first = {name for name, recipe in recipes.items() if recipe.first_line}
    assert first == {"trec", "triviaqa", "samsum", "lsht"}
    assert {name for name, recipe in recipes.items() if not recipe.chat} == first | {"lcc", "repobench-p"}
    summaries = {name for name, recipe in recipes.items() if recipe.metric == "rougeL_longbench"}
    assert summaries == {"gov_report", "qmsum", "multi_news", "samsum"}
    assert set(DATASETS) >= {"cnn_dailymail", "xsum", "samsum", "narrativeqa", "triviaqa"}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_hides_what_is_asked(task, tmp_path):
    asked = "Passage: visible passage\nQuestion: hidden\nSummary: hidden\n类别：hidden"
    row = longbench_row(1, input=asked, all_classes=["A", "B"])
    dataset = DATASETS.create(f"longbench_{task}", path=write_jsonl(tmp_path / f"{task}.jsonl", [row]))
    (sample,) = samples(dataset, 1)
    (question,) = sample.questions
    assert row["context"] in sample.context
    assert question.answers == ("7", "it is 7")
    assert question.max_new_tokens == MAX_NEW_TOKENS[task]
    assert sample.context + question.text == "".join(dataset.template.fill(row["context"], row["input"]))
    if task in ("lcc", "repobench-p"):
        assert asked in sample.context
        assert "hidden" not in question.text
    elif "{input}" in dataset.template.text:
        assert "hidden" in question.text
        assert ("visible passage" in sample.context) == (task in ("triviaqa", "samsum", "lsht"))
    else:
        assert "hidden" not in sample.context + question.text
    assert sample.details["classes"] == (["A", "B"] if task in ("trec", "lsht") else [])
    json.dumps(dict(sample.details))


@pytest.mark.parametrize("where", ["data/hotpotqa.jsonl", "data", "."])
def test_a_file_or_a_folder(hotpotqa, tmp_path, where):
    dataset = DATASETS.create("longbench_hotpotqa", path=tmp_path / where)
    assert len(dataset) == 12
    sample = samples(dataset, 1)[0]
    assert sample.id == "longbench_hotpotqa/10000/0/0"
    assert sample.questions[0].text.endswith("Answer:")
    assert dataset.recipe.split == "test"


@pytest.mark.parametrize("path", ["data.zip", "."])
def test_the_published_archive(hotpotqa, tmp_path, path):
    home = tmp_path / "zipped"
    home.mkdir()
    with zipfile.ZipFile(home / "data.zip", "w") as archive:
        archive.write(hotpotqa, "data/hotpotqa.jsonl")
        archive.writestr("data/hotpotqa_e.jsonl", "")
    assert len(DATASETS.create("longbench_hotpotqa", path=home / path)) == 12
    with pytest.raises(InputError, match=r"no musique\.jsonl.*THUDM/LongBench"):
        len(DATASETS.create("longbench_musique", path=home / path))
    (home / "data.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match="cannot read the archive"):
        len(DATASETS.create("longbench_hotpotqa", path=home / path))


def test_scored_part(hotpotqa):
    answer = "\nfirst\nsecond"
    assert DATASETS.create("longbench_trec").scored_part(answer) == "first"
    assert DATASETS.create("longbench_hotpotqa").scored_part(answer) == answer


def test_published_prompts(tmp_path, hotpotqa):
    file = tmp_path / "dataset2prompt.json"
    file.write_text(json.dumps({"hotpotqa": "As published.\n{context}\nQ: {input}\nA:"}))
    prompt = published_prompt(file, "longbench_hotpotqa")
    (sample,) = samples(DATASETS.create("longbench_hotpotqa", path=hotpotqa, prompt=prompt), 1)
    assert sample.context.startswith("As published.\nNumber")
    assert sample.questions[0].text.startswith("\nQ: What is number")
    for bad in (file, tmp_path / "gone.json", hotpotqa):
        with pytest.raises(InputError, match="prompt"):
            published_prompt(bad, "musique")
    with pytest.raises(ConfigError, match="must have"):
        DATASETS.create("longbench_hotpotqa", prompt="without")


# ------------------------------------------------------------------- selection


def test_a_seed_takes_the_same_items_whatever_the_order_of_the_rows(hotpotqa, tmp_path):
    rows = [longbench_row(i) for i in range(12)]
    random.Random(1).shuffle(rows)
    shuffled = DATASETS.create("longbench_hotpotqa", path=write_jsonl(tmp_path / "hotpotqa.jsonl", rows))
    dataset = DATASETS.create("longbench_hotpotqa", path=hotpotqa)
    for seed in (0, 1):
        assert items(samples(shuffled, 5, seed)) == items(samples(dataset, 5, seed))
    assert items(samples(dataset, 12, 0)) != items(samples(dataset, 12, 1))
    assert sorted(items(samples(dataset, 12))) == sorted(f"item-{i}" for i in range(12))


def test_a_record_of_items_is_taken_back(hotpotqa):
    chosen = items(samples(DATASETS.create("longbench_hotpotqa", path=hotpotqa), 3, seed=5))
    again = DATASETS.create("longbench_hotpotqa", path=hotpotqa, items=chosen)
    assert items(samples(again, 3, seed=8)) == chosen
    assert len(again) == 3
    with pytest.raises(InputError, match="has 3 items, so there is none of index 3"):
        again.sample(words, 100, 0, 3)
    with pytest.raises(InputError, match="no item 'x'"):
        samples(DATASETS.create("longbench_hotpotqa", path=hotpotqa, items=["x"]), 1)


def test_long_contexts_lose_their_middle(hotpotqa):
    (sample,) = samples(DATASETS.create("longbench_hotpotqa", path=hotpotqa), 1, length=60)
    asked = sample.questions[0].text
    assert 57 <= words(sample.context) + words(asked) <= 60
    assert sample.context.startswith("Passages:\nNumber")
    assert asked.endswith("Answer:")
    assert sample.details["characters_cut"] == sample.details["characters"] - len(sample.context) > 0
    with pytest.raises(ConfigError, match="does not fit"):
        samples(DATASETS.create("longbench_hotpotqa", path=hotpotqa), 1, length=20)


# ---------------------------------------------------------------- of the paper


def test_summaries(tmp_path):
    article, highlights = "An article. " * 30, "A point.\nAnother."
    path = write_jsonl(tmp_path / "test.jsonl", [{"article": article, "highlights": highlights, "id": "42"}])
    cnn = DATASETS.create("cnn_dailymail", path=tmp_path)
    (sample,) = samples(cnn, 1)
    assert (cnn.metric, items([sample])) == ("rouge2", ["42"])
    assert sample.context == f"News article:\n{article}"
    assert sample.questions[0].answers == (highlights,)
    assert "Key points:" in sample.questions[0].text

    names = {"context": "article", "answers": "highlights", "id": None}
    assert items(samples(DATASETS.create("xsum", path=path, fields=names), 1)) == ["0"]
    rows = [{"id": str(i), "dialogue": f"A: {i}?\r\nB: yes", "summary": f"{i}, yes"} for i in range(3)]
    samsum = DATASETS.create("samsum", path=write_csv(tmp_path / "test.csv", rows))
    assert (samsum.metric, len(samsum)) == ("rougeL", 3)
    assert "A: 2?\r\nB: yes" in {s.context.removeprefix("Dialogue:\n") for s in samples(samsum, 3)}


def test_questions_about_one_story_share_it(tmp_path):
    rows = [
        {
            "document": {"id": story, "text": f"The story of {story}. " * 9},
            "question": {"text": f"Question {i}?"},
            "answers": [{"text": f"{i}"}, {"text": f"number {i}"}],
        }
        for story in ("Ann", "Bob")
        for i in range(3)
    ]
    dataset = DATASETS.create("narrativeqa", path=write_jsonl(tmp_path / "test.jsonl", rows))
    assert len(dataset) == 2
    sample = dataset.sample(words, 1000, 0, 0)
    assert [question.answers[1] for question in sample.questions] == ["number 0", "number 1", "number 2"]
    assert len(sample.details["places"]) == 3

    rows[1]["document"]["text"] = "Another one."
    with pytest.raises(InputError, match="another row of the id 'Ann' has another context"):
        len(DATASETS.create("narrativeqa", path=write_jsonl(tmp_path / "test.jsonl", rows)))


def test_several_articles_and_aliases(tmp_path):
    row = {
        "question": "Who?",
        "question_id": "tc_1",
        "entity_pages": {"title": ["a", "b"], "wiki_context": ["First.", "Second."]},
        "answer": {"value": "Me", "aliases": ["Me", "Myself"]},
    }
    dataset = DATASETS.create("triviaqa", path=write_jsonl(tmp_path / "validation.jsonl", [row]))
    (sample,) = samples(dataset, 1)
    assert sample.context == "Articles:\nFirst.\n\nSecond."
    assert sample.questions[0].answers == ("Me", "Myself")
    assert dataset.recipe.split == "validation"


# --------------------------------------------------------------------- the hub


def test_the_hub_is_asked_without_a_path(hotpotqa, tmp_path, monkeypatch):
    asked = []

    def download(repository, **options):
        asked.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert len(DATASETS.create("longbench_hotpotqa")) == 12
    assert asked == [("THUDM/LongBench", {"repo_type": "dataset", "allow_patterns": ["data.zip"]})]


def test_a_hub_out_of_reach(monkeypatch):
    def download(repository, **options):
        raise OSError("offline\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(InputError, match=r"abisee/cnn_dailymail from the hub \(offline\).*give its path"):
        len(DATASETS.create("cnn_dailymail"))


# ---------------------------------------------------------------------- errors


def test_missing_data_says_where_to_get_it(tmp_path):
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(InputError, match=r"get data\.zip of the hub's data set THUDM/LongBench and give its path"):
            len(DATASETS.create("longbench_trec", path=path))


@pytest.mark.parametrize("missing", ["context", "answers", "input", "_id"])
def test_missing_fields_are_named(tmp_path, missing):
    row = longbench_row(1)
    del row[missing]
    path = write_jsonl(tmp_path / "hotpotqa.jsonl", [longbench_row(0), row])
    with pytest.raises(InputError, match=rf"line 2: there is no field '{missing}'; the row has .*THUDM/LongBench"):
        len(DATASETS.create("longbench_hotpotqa", path=path))


def test_empty_files(tmp_path):
    with pytest.raises(InputError, match="has no rows"):
        len(DATASETS.create("longbench_hotpotqa", path=write_jsonl(tmp_path / "hotpotqa.jsonl", [])))


def test_names_and_options():
    with pytest.raises(UnknownNameError, match="did you mean 'longbench_hotpotqa'"):
        DATASETS.create("longbench_hotpot")
    with pytest.raises(ConfigError, match="cannot take"):
        DATASETS.create("xsum", folder="x")
    assert all(issubclass(DATASETS.factory(name), Dataset) for name in DATASETS)
