"""A tiny model, a tokenizer of single letters, small tasks of all kinds, and a runner of the command."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import squeezeattention.cli.evaluate as command
from squeezeattention import evaluation
from squeezeattention.cli.app import app
from squeezeattention.cli.console import ERR, OUT
from squeezeattention.errors import ConfigError
from squeezeattention.metrics import METRICS
from squeezeattention.tasks import NLL, TASKS, CountTokens, Question, Sample, Task
from squeezeattention.testing import tiny_model


class Letters:
    """A tokenizer of single letters; the model's vocabulary has 128."""

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        return SimpleNamespace(input_ids=[ord(letter) % 128 for letter in text])

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, tokens))


class Lines(Task):
    """Random letters; questions of two lengths."""

    name = "lines"
    metric = "spread"
    summary = "letters"

    def sample(self, count_tokens: CountTokens, length: int, seed: int, index: int) -> Sample:
        if length < 20:
            raise ConfigError(f"task 'lines' needs at least 20 tokens, got {length}")
        rng = random.Random(f"{self.name}/{length}/{seed}/{index}")
        text = "".join(rng.choices("abcdefgh ", k=length - 6))
        questions = tuple(Question(ask, ("a",), room) for ask, room in (("who?", 3), ("when?", 2), ("how?", 4)))
        return Sample(self.name, length, seed, index, text, questions, details={"first": text[0]})


class Letter(Lines):
    """The same with a question without text."""

    name = "letter"

    def sample(self, count_tokens: CountTokens, length: int, seed: int, index: int) -> Sample:
        sample = super().sample(count_tokens, length, seed, index)
        return dataclasses.replace(sample, task=self.name, questions=(Question("", ("b",), 5),))


class Story(Lines):
    """A text that goes on."""

    name = "story"
    metric = NLL

    def sample(self, count_tokens: CountTokens, length: int, seed: int, index: int) -> Sample:
        sample = super().sample(count_tokens, length, seed, index)
        return dataclasses.replace(sample, task=self.name, questions=(), continuation=sample.context[:9])


def spread(prediction: str, answers: Sequence[str]) -> float:
    """Some number between 0 and 1 that depends on every letter: a random model is right about nothing."""
    return (sum(map(ord, prediction)) % 11) / 10


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The tasks and their metric, by name."""
    kinds = (Lines, Letter, Story)
    for kind in kinds:
        TASKS.register(kind.name, kind)
    METRICS.register("spread", spread)
    yield
    METRICS.unregister("spread")
    for kind in kinds:
        TASKS.unregister(kind.name)


@pytest.fixture(scope="session")
def model() -> Any:
    return tiny_model("llama", vocab_size=128, eos_token_id=None, bos_token_id=None, pad_token_id=None)


@pytest.fixture
def settings() -> evaluation.Settings:
    """Three kinds of task, two samples each, the full cache and two others: 18 rows."""
    return evaluation.Settings(
        model="tiny", tasks=("lines", "letter", "story"), lengths=(40,), samples=2, policies=("streaming_llm",),
        allocators=("uniform", "squeeze"), budgets=("0.3",),
    )  # fmt: skip


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(model: Any) -> Run:
    """Run settings into a folder; returns the summary that was written there."""

    def run(settings: evaluation.Settings, folder: Path, **options: Any) -> dict[str, Any]:
        evaluation.run(model, Letters(), settings, folder, **options)
        return evaluation.write_summary(folder)

    return run


@pytest.fixture
def squeeze(monkeypatch: pytest.MonkeyPatch, model: Any) -> Iterator[Callable[..., Any]]:
    """Run the command with the tiny model, whatever model is asked for; consoles have 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(command, "load_model", lambda *_: (model, Letters()))
    before = OUT.width, ERR.width
    OUT.width = ERR.width = 80

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["eval", *map(str, arguments)])

    yield run
    OUT.width, ERR.width = before
