"""Templates, the middle that goes, and the line that counts."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from squeezeattention.datasets import Asks, Template, first_line
from squeezeattention.datasets.truncation import without_middle
from squeezeattention.embedded import FOLDER
from squeezeattention.errors import ConfigError


def words(text: str) -> int:
    """A tokenizer whose tokens are words."""
    return len(text.split())


@pytest.fixture(scope="session")
def pieces():
    """Count the tokens of the embedded model's byte-level BPE."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(FOLDER / "tokenizer.json"))
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def test_where_the_question_begins():
    text = "Read. {context} Then {input} Say:"
    assert Template(text).fill("C{input}", "Q{context}") == ("Read. C{input}", " Then Q{context} Say:")
    assert Template(text, Asks.AFTER_INPUT).fill("C", "Q") == ("Read. C Then Q", " Say:")
    split = Template(text, Asks.IN_INPUT, "Question:")
    assert split.fill("C", "Question: of the passage. Question: 1?") == (
        "Read. C Then Question: of the passage. ",
        "Question: 1? Say:",
    )
    assert split.fill("C", "no marker") == ("Read. C Then ", "no marker Say:")
    assert Template("{context} Summary:").fill("C", "") == ("C", " Summary:")


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("no context", Asks.AFTER_CONTEXT),
        ("{context}{context}", Asks.AFTER_CONTEXT),
        ("{input}{context}", Asks.AFTER_CONTEXT),
        ("{context}{input}{input}", Asks.AFTER_CONTEXT),
        ("{context}", Asks.AFTER_INPUT),
    ],
)
def test_prompts_that_cannot_work(text, asks):
    with pytest.raises(ConfigError, match="must have"):
        Template(text, asks)


def test_short_texts_stay():
    assert without_middle("a b c", 5, words, following=2) == "a b c"


@pytest.mark.parametrize("limit", [7, 8, 50, 999])
def test_both_halves_stay(limit):
    text = " ".join(f"w{i:04}" for i in range(1000))
    cut = without_middle(text, limit, words, following=3)
    assert limit - 2 <= words(cut) + 3 <= limit
    half = limit // 2
    assert cut.startswith(text[: 6 * (half - 1)])
    assert cut.endswith(text[len(text) - 6 * (limit - half - 3 - 1) :])


@pytest.mark.parametrize("limit", [64, 65, 200, 1000])
@pytest.mark.parametrize("kind", ["code", "chinese", "mixed"])
def test_real_tokens(pieces, limit, kind):
    source = Path(__file__).read_text(encoding="utf-8") * 3
    text = {"code": source, "chinese": "会议记录：今天天气很好。" * 200, "mixed": "🎉 ok 会议 " * 300}[kind]
    calls = []

    def count(piece):
        calls.append(piece)
        return pieces(piece)

    cut = without_middle(text, limit, count, following=20)
    assert limit - 12 <= pieces(cut) + 20 <= limit  # a character of Chinese is up to three tokens here
    head = next(n for n in range(len(cut), 0, -1) if text.startswith(cut[:n]))
    assert text.endswith(cut[head:]) or any(text.endswith(cut[n:]) for n in range(head))
    assert len(calls) < 40


def test_a_question_that_is_too_long():
    with pytest.raises(ConfigError, match="question of 6 tokens does not fit into 11"):
        without_middle("a b c d e f g", 11, words, following=6)


def test_first_line():
    assert first_line("\n\nDescription\nQuestion: next") == "Description"
    assert first_line("one") == "one"
    assert first_line("\n") == first_line("") == ""
