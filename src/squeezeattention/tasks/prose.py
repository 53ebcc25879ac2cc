"""Prose, a chapter that was written for this package or a text of the user's own, and names of people."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from ..errors import InputError

CHAPTER = "chapter.txt"
NAMES = (
    "Adrian", "Agnes", "Albert", "Amelia", "Beatrice", "Bernard", "Caroline", "Cedric", "Charlotte", "Claudia",
    "Conrad", "Dorothy", "Edgar", "Edmund", "Eleanor", "Esther", "Felix", "Florence", "Gareth", "Gilbert", "Harriet",
    "Harvey", "Helena", "Horace", "Hugo", "Irene", "Jasper", "Josephine", "Judith", "Leonard", "Lucy", "Mabel",
    "Martha", "Matilda", "Maurice", "Miriam", "Mortimer", "Nadine", "Oscar", "Oswald", "Penelope", "Quentin",
    "Rosalind", "Rupert", "Sebastian", "Sylvia", "Theodore", "Ursula", "Victor", "Vincent", "Walter", "Winifred",
)  # fmt: skip
_LONGEST = 60  # words of a sentence; what has no full stops is cut
_SENTENCE = re.compile(r"\S.*?(?:[.!?][\"'”’)]*(?=\s|$)|\Z)\s*", re.DOTALL)
_WORD = re.compile(r"\S+\s*")


def text_of(text: Path | None) -> str:
    """A file's text, or this package's chapter. Raises :class:`InputError` for a file that cannot be read."""
    try:
        return (files(__package__) / CHAPTER if text is None else text).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"cannot read the text {text}: {reason}") from error


def sentences_of(text: Path | None) -> list[str]:
    """The sentences of a file (``None``: this package's chapter), each with the white space behind it; long ones cut.

    Raises :class:`InputError` for a file that cannot be read or has no text.
    """
    found = text_of(text)
    sentences = [_WORD.findall(sentence) for sentence in _SENTENCE.findall(found.strip() + "\n\n")]
    if not sentences:
        raise InputError(f"the text is empty: {text}")
    return ["".join(words[at : at + _LONGEST]) for words in sentences for at in range(0, len(words), _LONGEST)]


def words_from(sentences: list[str], start: int, count: int) -> list[str]:
    """Sentences of ``count`` words in all, from ``start`` on and round; the last is cut, at least two parts."""
    found: list[str] = []
    while count > 0 or len(found) < 2:
        sentence = sentences[(start + len(found)) % len(sentences)]
        words = sentence.split(" ")
        found.append(sentence if len(words) <= count else " ".join(words[: max(1, count)]).rstrip() + " ")
        count -= len(words)
    return found
