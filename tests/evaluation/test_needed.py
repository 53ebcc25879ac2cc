"""What answers need is what eager attention says, and what a cut leaves of it is what a mask by hand says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import matplotlib.image
import pytest
import torch
from typer.testing import CliRunner

import squeezeattention.cli.why as command
from squeezeattention.cli.app import app
from squeezeattention.errors import InputError, UnsupportedFeatureError
from squeezeattention.evaluation.config import Config
from squeezeattention.evaluation.needed import _look, _places, why
from squeezeattention.evaluation.spec import Spec
from squeezeattention.tasks.base import Question, Sample
from squeezeattention.testing import tiny_model

from .conftest import Letters, Lines

FAMILIES = ("llama", "qwen3", "gemma2", "mistral")
CONTEXT = "the code of anna is 4170 and the code of bert is 9312 or so it is said by many here"
QUESTIONS = (
    Question(" code of anna?", ("4170",), 4, "4170."),
    Question(" bert?", ("9312",), 4),
    Question(" carl?", ("nowhere",), 4),
)
SAMPLE = Sample("lines", len(CONTEXT), 0, 0, CONTEXT, QUESTIONS)


class Placed(Letters):
    """One that knows where its tokens stand."""

    is_fast = True

    def __call__(self, text: str, **options: Any) -> Any:
        ids = super().__call__(text).input_ids
        return (
            {"input_ids": ids, "offset_mapping": [(at, at + 1) for at in range(len(text))]}
            if options.get("return_offsets_mapping")
            else super().__call__(text)
        )


def ids(text: str) -> list[int]:
    return [ord(letter) % 128 for letter in text]


def eager(name: str) -> Any:
    return tiny_model(name, vocab_size=128, eos_token_id=None, bos_token_id=None, pad_token_id=None)


def attention_of(model: Any, tokens: Sequence[int]) -> list[torch.Tensor]:
    """All probabilities of one text, [Hq, T, T] for each layer, by transformers' eager attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(input_ids=torch.tensor([list(tokens)]), output_attentions=True, use_cache=False)
    model.set_attn_implementation(before)
    return [layer[0].float() for layer in out.attentions]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_answers_need_is_eager_attention_on_their_places(family: str) -> None:
    model = eager(family)
    heads = model.config.get_text_config().num_key_value_heads
    received, places = _look(model, Placed(), SAMPLE)
    wanted = [torch.zeros(heads, len(CONTEXT)) for _ in received]
    for question, place in zip(QUESTIONS[:2], (CONTEXT.index("4170"), CONTEXT.index("9312")), strict=True):
        said = ids(question.reply or " 9312")
        tokens = [*ids(CONTEXT), *ids(question.text), *said]
        first = len(tokens) - len(said) - 1
        for layer, found in enumerate(attention_of(model, tokens)):
            rows = found[:, first : len(tokens) - 1, place : place + 4].sum(dim=1)
            wanted[layer][:, place : place + 4] += rows.unflatten(0, (heads, -1)).mean(dim=1)
    assert places == [list(range(20, 24)), list(range(49, 53)), []]
    for own, right in zip(received, wanted, strict=True):
        torch.testing.assert_close(own, right, atol=1e-5, rtol=1e-4)
    assert any(own.sum() > 0 for own in received)  # a window may hide all of it from a layer


def test_a_window_keeps_what_lies_in_it(model: Any) -> None:
    """StreamingLLM's tokens are known without it: 4 sinks and the newest."""
    received, _ = _look(model, Placed(), SAMPLE)
    config = Config(Spec.parse("streaming_llm"), Spec.parse("uniform"), "40")
    found = why(model, Placed(), Lines(), [SAMPLE], [config])
    full, cut = found.ways
    assert (found.need.questions, found.need.tokens) == (2, 8)
    assert full.share == pytest.approx(1.0)
    assert full.bytes == 1.0
    held = cut.bytes * len(CONTEXT)
    assert held == pytest.approx(40)
    newest = len(CONTEXT) - 36
    for own, layer in zip(cut.heads, received, strict=True):
        kept = layer.clone()
        kept[:, 4:newest] = 0
        assert own == pytest.approx(kept.sum(-1).tolist(), abs=1e-6)
    assert 0 < cut.share < 1


def test_the_fewest_units_that_have_half(model: Any) -> None:
    need = why(model, Placed(), Lines(), [SAMPLE], []).need
    units = sorted((own for layer in need.heads for own in layer), reverse=True)
    leading = need.leading()
    assert sum(units[: len(leading)]) >= need.total / 2 > sum(units[: len(leading) - 1])
    assert need.leading(1.0) == sorted(
        ((layer, head) for layer, row in enumerate(need.heads) for head in range(len(row))),
        key=lambda unit: -need.heads[unit[0]][unit[1]],
    )


def test_an_answer_is_found_wherever_it_stands() -> None:
    spans = [(0, 0), (0, 3), (3, 5), (5, 9), (9, 12)]
    assert _places("abcdefgabcde", spans, ("fgabc",)) == [3, 4]
    assert _places("abab_abab___", spans, ("ab",)) == [1, 2, 3]
    assert _places("abcdefgabcde", spans, ("xyz",)) == []


def test_answers_that_stand_nowhere_are_refused(model: Any) -> None:
    only = Sample("lines", 80, 0, 0, CONTEXT, QUESTIONS[2:])
    with pytest.raises(InputError, match="no answer stands in its text"):
        why(model, Placed(), Lines(), [only], [])


def test_tasks_that_ask_nothing_are_refused(model: Any) -> None:
    only = Sample("code", 80, 0, 0, CONTEXT, (), "and so on")
    with pytest.raises(InputError, match="'lines' asks nothing"):
        why(model, Placed(), Lines(), [only], [])


def test_a_tokenizer_without_places_is_refused(model: Any) -> None:
    with pytest.raises(UnsupportedFeatureError, match="fast tokenizer"):
        why(model, Letters(), Lines(), [SAMPLE], [])


def test_the_command_prints_draws_and_gives_json(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(command, "load_model", lambda *_: (model, Placed()))
    monkeypatch.setattr(Lines, "sample", lambda *_: SAMPLE)
    words = ["why", "tiny", "-t", "lines", "--length", "84", "-b", "0.4", "--policy", "h2o/uniform"]
    shown = CliRunner().invoke(app, [*words, "--plot", str(tmp_path / "why.png")])
    assert shown.exit_code == 0, shown.output
    assert "2 questions" in shown.output
    assert matplotlib.image.imread(tmp_path / "why.png").shape[2] == 4
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [way["id"] for way in found["ways"]] == ["full", "h2o/uniform/0.4"]
    assert found["ways"][0]["kept"] == pytest.approx(1.0)
    assert found["ways"][1]["kept"] < 1
    refused = CliRunner().invoke(app, [*words[:-1], "h2o"])
    assert refused.exit_code == 2
    assert "names no allocator" in refused.output
