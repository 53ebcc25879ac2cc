"""Text as it is made: whole characters only, all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from squeezeattention.chat.streaming import Watch


def pieces_of(tokenizer: Any, ids: list[int]) -> list[str]:
    pieces: list[str] = []
    watch = Watch(tokenizer, pieces.append)
    watch.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for token in ids:
        watch.put(torch.tensor([token]))
    watch.end()
    return pieces


@pytest.mark.parametrize("text", ["def f(x):\n    return x", "é € 𝄞 漢字\n\n  end ", " leading"])
def test_pieces_are_whole_characters(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert all(pieces)


def test_a_long_text_is_not_decoded_over_and_over(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "漢 def f(x): é€𝄞 return   x\n" * 40
    ids = tokenizer(text, add_special_tokens=False).input_ids
    seen: list[int] = []
    decode = type(tokenizer).decode

    def counted(self: Any, tokens: list[int], **options: Any) -> str:
        seen.append(len(tokens))
        return str(decode(self, tokens, **options))

    monkeypatch.setattr(type(tokenizer), "decode", counted)
    assert "".join(pieces_of(tokenizer, ids)) == text
    assert len(ids) > 600
    assert sorted(seen)[-2] <= 70  # the end aside; a character may take some tokens more


def test_an_unfinished_character_is_shown_at_the_end(tokenizer: Any) -> None:
    ids = tokenizer("a𝄞", add_special_tokens=False).input_ids
    assert len(ids) > 2
    assert pieces_of(tokenizer, ids[:-1]) == ["a", "\ufffd"]


def test_special_tokens_are_not_shown(tokenizer: Any) -> None:
    ids = tokenizer("import os", add_special_tokens=False).input_ids
    assert "".join(pieces_of(tokenizer, [*ids, tokenizer.eos_token_id])) == "import os"


def test_times_are_of_the_first_token_and_of_the_others(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0, 12.5, 13.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Watch(tokenizer)
    for _ in range(4):  # the prompt and three tokens
        watch.put(torch.tensor([5]))
    assert watch.timings(3) == (2.0, 1.0, 2.0)
    assert watch.timings(1)[2] is None
