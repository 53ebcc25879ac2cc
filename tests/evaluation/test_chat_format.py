"""Contexts and questions in a chat template are the text that one would render by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from squeezeattention import evaluation
from squeezeattention.errors import ConfigError, EvaluationError, InputError
from squeezeattention.evaluation import Settings
from squeezeattention.evaluation.chat_format import as_chat
from squeezeattention.evaluation.folder import read_rows, read_run
from squeezeattention.evaluation.runner import make_sample
from squeezeattention.tasks.base import Question
from squeezeattention.tasks.conversation import Conversation

from .conftest import Letters, Lines


class Chatting(Letters):
    """Letters with a template: ``<context question?>{answer``."""

    chat_template = "yes"

    def apply_chat_template(self, turns: list[dict[str, str]], **options: Any) -> str:
        assert options == {"add_generation_prompt": True, "tokenize": False}
        return "".join(f"<{turn['content'].strip()}>" for turn in turns) + "{"


QUESTIONS = {
    " who?": " who?>{",  # all of it is the user's
    "\n\nQuestion: who is it?\nAnswer: It is": "\n\nQuestion: who is it?>{It is",
    " who? The name mentioned is": " who?>{The name mentioned is",
    " name =": " name =>{",
}


@pytest.mark.parametrize(("text", "asked"), QUESTIONS.items())
def test_the_question_ends_the_turn_and_begins_the_answer(text: str, asked: str) -> None:
    sample = replace(Lines().sample(len, 40, 0, 0), questions=(Question(text, ("a",), 3),))
    context, chatting = as_chat(Chatting(), sample)
    assert "".join(map(chr, context)) == f"<{sample.context}"
    assert [question.text for question in chatting.questions] == [asked]
    assert chatting.questions[0].answers == ("a",)


def test_a_conversation_is_read_turn_by_turn() -> None:
    sample = Conversation(turns=3).sample(len, 900, 0, 0)
    context, chatting = as_chat(Chatting(), sample)
    said = "".join(f"<{user}><{reply}>" for user, reply in sample.turns)
    assert "".join(map(chr, context)) == f"{said}<"
    owner = next(iter(sample.details["numbers"]))
    thing = sample.details["thing"]
    assert chatting.questions[0].text == f"What is the {thing} of {owner}?>{{The {thing} of {owner} is"
    assert sample.context == "\n\n".join(f"User: {user}\nAnswer: {reply}" for user, reply in sample.turns)


def test_a_text_that_goes_on_is_no_turn() -> None:
    sample = replace(Lines().sample(len, 40, 0, 0), questions=(), continuation="and on")
    context, same = as_chat(Chatting(), sample)
    assert "".join(map(chr, context)) == sample.context
    assert same is sample


@pytest.mark.parametrize("question", ["hidden", "visible"])
def test_answers_are_those_to_the_rendered_text(model: Any, settings: Settings, tmp_path: Path, question: str) -> None:
    chosen = replace(settings, tasks=("lines",), chat=True, question=question)
    evaluation.run(model, Chatting(), chosen, tmp_path)
    rows = [row for row in read_rows(tmp_path) if row["config"]["policy"] is None]
    tasks = chosen.make_tasks()
    for row, key in zip(rows, chosen.samples_of_all(), strict=True):
        sample = make_sample(tasks[key.task], len, key)
        for asked, answer in zip(sample.questions, row["answers"], strict=True):
            tokens = Letters()(f"<{sample.context}{asked.text}>{{").input_ids
            for _ in range(asked.max_new_tokens):
                with torch.no_grad():
                    tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
            assert answer == Letters().decode(tokens[-asked.max_new_tokens :])


def test_it_is_recorded_and_another_run_than_without(model: Any, settings: Settings, tmp_path: Path) -> None:
    chosen = replace(settings, tasks=("lines",), samples=1)
    evaluation.run(model, Chatting(), chosen, tmp_path / "raw")
    evaluation.run(model, Chatting(), replace(chosen, chat=True), tmp_path / "chat")
    assert "chat" not in read_run(tmp_path / "raw")["settings"]  # as before there was one
    assert Settings.from_dict(read_run(tmp_path / "chat")["settings"]).chat
    for folder, other in (("raw", True), ("chat", False)):
        with pytest.raises(EvaluationError, match="chat is"):
            evaluation.run(model, Chatting(), replace(chosen, chat=other), tmp_path / folder)


def test_without_a_template_it_is_refused_before_anything_is_written(
    squeeze: Callable[..., Any], model: Any, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--chat needs a tokenizer with a chat template"):
        evaluation.run(model, Letters(), replace(settings, chat=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert squeeze("run", "--model", "tiny", "-t", "lines", "--chat", "-o", tmp_path / "o").exit_code == 2


def test_a_template_that_changes_the_words_is_refused() -> None:
    shouting = Chatting()
    shouting.apply_chat_template = lambda turns, **options: turns[0]["content"].upper()  # type: ignore[method-assign]
    with pytest.raises(InputError, match="does not have the user's words"):
        as_chat(shouting, Lines().sample(len, 40, 0, 0))
