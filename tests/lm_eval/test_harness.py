"""The backend inside the real harness, on tasks that these tests write themselves."""

import json
import os
import random
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval")

import torch
from datasets import disable_progress_bars
from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from squeezeattention import SqueezeError, load_embedded
from squeezeattention.integrations.lm_eval import SqueezeLM
from squeezeattention.tasks.corpus import modules
from squeezeattention.tasks.recall import draw_facts
from squeezeattention.testing import tiny_model

from ..gguf_writer import tiny_llama, write_gguf

GENERATION = """
task: squeeze_recall
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{context}}{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""
CHOICE = """
task: squeeze_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: " "
metric_list: [{metric: acc}]
"""
ROLLING = """
task: squeeze_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{context[:400]}}"
metric_list: [{metric: bits_per_byte}]
"""


def documents(count):
    """Source code with facts in it, of different lengths, a question about one, and numbers to choose from."""
    rng = random.Random(4)
    source = modules(held_out=True)[3][1]
    for index in range(count):
        facts = draw_facts(rng, 4, held_out=True)
        text = source[index * 500 : index * 500 + 200 + 90 * index]
        context = text + "\n" + "".join(fact.statement for fact in facts) + "x = 1\n" * (2 * index)
        choices = [fact.value for fact in facts[:3]] + ["no such number"]
        yield {
            "context": context,
            "question": facts[1].question,
            "answer": f" {facts[1].value}",
            "choices": choices,
            "gold": 1,
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in documents(4)))
    for name, task in (("recall", GENERATION), ("choice", CHOICE), ("rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(task.replace("DATA", json.dumps(str(data))))
    return folder


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def embedded():
    return load_embedded()


def evaluate(backend, folder, tasks=("squeeze_recall", "squeeze_choice", "squeeze_rolling")):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(
        model=backend, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, log_samples=True, verbosity="ERROR"
    )


def answers(results, task):
    """What the backend said to every document, in numbers or text."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


def numbers(found):
    return [float(number) for document in found for response in document for number in _flat(response[0])]


def _flat(response):
    return response if isinstance(response, tuple | list) else [response]


@pytest.fixture(scope="module")
def stock(embedded, folder):
    model, tokenizer = embedded
    return evaluate(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), folder)


@pytest.mark.parametrize(
    ("batch_size", "policy", "allocator"), [(1, "streaming_llm", "uniform"), (3, "h2o", "squeeze")]
)
def test_everything_kept_scores_as_stock(embedded, folder, stock, batch_size, policy, allocator):
    model, tokenizer = embedded
    backend = SqueezeLM(
        model, tokenizer=tokenizer, batch_size=batch_size, budget=1.0, policy=policy, allocator=allocator
    )
    found = evaluate(backend, folder)
    assert answers(found, "squeeze_recall") == answers(stock, "squeeze_recall")
    for task in ("squeeze_choice", "squeeze_rolling"):
        assert numbers(answers(found, task)) == pytest.approx(numbers(answers(stock, task)), abs=2e-3)
    for task, metrics in stock["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert found["results"][task][name] == pytest.approx(value, abs=1e-4), (task, name)
    share = found["config"]["squeeze"]["held"]["end of context"]["share"]
    assert share == pytest.approx(1.0) if batch_size == 1 else 0.8 < share <= 1.0  # rows do without their padding


def test_a_small_budget_is_another_score_and_is_recorded(embedded, folder, stock):
    model, tokenizer = embedded
    backend = SqueezeLM(model, tokenizer=tokenizer, budget=0.1, policy="streaming_llm", allocator="uniform")
    found = evaluate(backend, folder)
    assert answers(found, "squeeze_recall") != answers(stock, "squeeze_recall")
    for task in ("squeeze_choice", "squeeze_rolling"):
        pairs = zip(numbers(answers(found, task)), numbers(answers(stock, task)), strict=True)
        assert any(abs(a - b) > 0.1 for a, b in pairs)
    said = found["config"]["squeeze"]
    assert said["budget"] == "10% of the prompt"
    assert {point: 0.05 < held["share"] < 0.15 for point, held in said["held"].items()} == dict.fromkeys(
        ("end of generation", "end of context", "end of text"), True
    )
    json.dumps(said)


def test_by_name_and_arguments(folder):
    results = simple_evaluate(
        model="squeeze",
        model_args="pretrained=embedded,budget=32,policy=h2o,allocator=inverted,p=0.3,device=cpu",
        tasks=["squeeze_recall"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        limit=2,
    )
    assert results["config"]["squeeze"]["budget"] == "32 tokens per layer"
    assert results["n-samples"]["squeeze_recall"]["effective"] == 2


def test_a_folder(folder, tmp_path, embedded):
    tokenizer = embedded[1]
    model = tiny_model("llama", vocab_size=len(tokenizer), eos_token_id=None)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backend = SqueezeLM(str(tmp_path), device="cpu", budget="20%", policy="sliding_window", batch_size=2)
    assert evaluate(backend, folder, ["squeeze_choice"])["results"]["squeeze_choice"]["acc,none"] >= 0


def test_truncation_and_empty_contexts(embedded):
    """Both as the stock backend has them, when everything is kept."""
    model, tokenizer = embedded
    options = {"tokenizer": tokenizer, "max_length": 24}
    text = "def area(width, height):\n    return width * height\n" * 3
    requests = [SimpleNamespace(args=pair, task_name=None) for pair in [(text, " x = 1"), ("", text[:60]), ("a", " b")]]
    want = HFLM(pretrained=model, **options).loglikelihood(requests, disable_tqdm=True)
    found = SqueezeLM(model, budget=1.0, batch_size=2, **options).loglikelihood(requests, disable_tqdm=True)
    assert [answer[0] for answer in found] == pytest.approx([answer[0] for answer in want], abs=1e-3)
    assert [answer[1] for answer in found] == [answer[1] for answer in want]


def test_a_batch_size_that_is_found(embedded):
    model, tokenizer = embedded
    backend = SqueezeLM(model, tokenizer=tokenizer, batch_size="auto", max_batch_size=2, max_length=32)
    requests = [SimpleNamespace(args=(f"x{i} =", " 1"), task_name=None) for i in range(3)]
    assert len(backend.loglikelihood(requests, disable_tqdm=True)) == 3


def test_answers_are_remembered_by_the_harness(embedded):
    model, tokenizer = embedded
    backend, remembered = SqueezeLM(model, tokenizer=tokenizer), []
    backend.cache_hook = SimpleNamespace(add_partial=lambda *call: remembered.append(call))
    backend.loglikelihood([SimpleNamespace(args=("x =", " 1"), task_name=None)], disable_tqdm=True)
    assert [(kind, strings) for kind, strings, _ in remembered] == [("loglikelihood", ("x =", " 1"))]


@pytest.mark.parametrize(
    "arguments",
    [{"budget": 0.0}, {"policy": "h20"}, {"allocator": "x"}, {"p": 3.0}, {"policy": "h2o", "sinks": 3}],
)
def test_mistakes_are_typed_errors(embedded, arguments):
    with pytest.raises(SqueezeError):
        SqueezeLM(embedded[0], tokenizer=embedded[1], **arguments)


def test_a_gguf_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SQUEEZE_CACHE_HOME", str(tmp_path))
    path = str(write_gguf(tmp_path / "tiny.gguf", tiny_llama()))
    backend = SqueezeLM(path, budget=8, device="cpu", dtype="bfloat16")
    assert (backend.model.dtype, backend.model.config.num_hidden_layers) == (torch.bfloat16, 4)
    assert backend.tok_encode("the thing")
    with pytest.raises(SqueezeError, match="no such file"):
        SqueezeLM(str(tmp_path / "none.gguf"))


@pytest.mark.parametrize("dtype", ["int8", "no such"])
def test_dtypes(dtype):
    with pytest.raises(SqueezeError, match=f"dtype {dtype!r}"):
        SqueezeLM("embedded", dtype=dtype)


def test_the_entry_point():
    (point,) = (point for point in entry_points(group="lm_eval.models") if point.name == "squeeze")
    assert point.load() is SqueezeLM is get_model("squeeze")


def command_line(folder, tmp_path, arguments, *more):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path)}
    command = [
        *(sys.executable, "-m", "squeezeattention.integrations.lm_eval", "run", "--model", "squeeze"),
        *(
            "--model_args",
            arguments,
            "--tasks",
            str(folder / "choice.yaml"),
            "--limit",
            "2",
            "--batch_size",
            "2",
            *more,
        ),
    ]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)


@pytest.mark.parametrize("device", [("--device", "cpu"), ()])
def test_command_line(folder, tmp_path, device):
    """Without a device the harness asks for "cuda:0", GPU or not."""
    settings = "pretrained=embedded,budget=1.0,policy=h2o,allocator=squeeze"
    done = command_line(folder, tmp_path, settings, "--output_path", str(tmp_path / "out"), *device)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "squeeze_choice" in done.stdout
    (written,) = (tmp_path / "out").rglob("results_*.json")
    share = json.loads(written.read_text())["config"]["squeeze"]["held"]["end of context"]["share"]
    assert 0.8 < share <= 1.0  # rows of a batch do without their padding


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("pretrained=embedded,policy=h20", "unknown policy 'h20' (did you mean 'h2o'?)"),
        ("pretrained=embedded,allocator=sqeeze", "unknown allocator 'sqeeze'"),
        ("pretrained=embedded,signal=cosin", "unknown signal 'cosin'"),
        ("pretrained=embedded,allocator=uniform,p=0.3", "'uniform' has no p"),
        ("pretrained=/nowhere/model", "there is no such folder"),
        ("pretrained=no body/no model", "cannot load the model 'no body/no model'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(folder, tmp_path, settings, words):
    done = command_line(folder, tmp_path, settings)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
