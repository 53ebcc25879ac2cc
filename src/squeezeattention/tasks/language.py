"""Language modelling: a text is read, and what comes next is scored by its likelihood. Nothing is generated."""

from __future__ import annotations

import random
from abc import abstractmethod
from functools import cache
from pathlib import Path

from ..errors import ConfigError, InputError
from .base import NLL, CountTokens, Sample
from .corpus import require_modules
from .generated import Draft, GeneratedTask, at_least
from .prose import text_of

_LEAST_CHARS = 200
_CONTINUATION_SHARE = 0.25  # of the characters, from the next line's start on
_CONTINUATION_CHARS = 2_000  # at most: each of its tokens is a decode step
_FILLED = 0.85  # share of the length below which a text was too short for it


class LanguageModelling(GeneratedTask):
    """A piece of a text, cut at a line's end into a context and its continuation.

    The continuation is a quarter of the piece, or 2,000 characters of a long one. Units are characters. Pieces start at
    a random line, so different samples of a short text overlap.
    """

    metric = NLL
    following = _CONTINUATION_CHARS

    @abstractmethod
    def text(self) -> str:
        """All there is to draw pieces from."""

    def least(self, length: int) -> int:
        return _LEAST_CHARS

    def most(self, length: int) -> int:
        return len(self.text())

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        text = self.text()
        # The start moves with the size, so that every piece lies within the text.
        start = text.rfind("\n", 0, int(rng.random() * max(1, len(text) - units + 1))) + 1
        piece = text[start : start + units]
        middle = units - min(int(units * _CONTINUATION_SHARE), self.following)
        line_end = piece.find("\n", middle, (middle + units) // 2) + 1
        cut = line_end or middle
        return Draft(piece[:cut], continuation=piece[cut:], details={"start": start, "chars": units})

    def sample(self, count_tokens: CountTokens, length: int, seed: int, index: int) -> Sample:
        sample = super().sample(count_tokens, length, seed, index)
        have = count_tokens(sample.context) + count_tokens(sample.continuation or "")
        if have < _FILLED * length:
            raise ConfigError(f"the text of task {self.name!r} has about {have} tokens; {length} were asked for")
        return sample


class Code(LanguageModelling):
    """Python's standard library, the modules that training leaves out (``held_out=False``: the others)."""

    name = "code"
    summary = "likelihood of source code of the standard library"

    def text(self) -> str:
        return _library(self.held_out)


@cache
def _library(held_out: bool) -> str:
    return "".join(text if text.endswith("\n") else f"{text}\n" for _, text in require_modules(held_out=held_out))


class TextFile(LanguageModelling):
    """Any UTF-8 text file, or this package's chapter of prose; ``following``: characters to foresee, at most.

    Raises :class:`~squeezeattention.errors.InputError` if it cannot be read or has fewer than 200 characters.
    """

    name = "text_file"
    summary = "likelihood of a text file of yours, or of a chapter"

    def __init__(
        self, path: str | Path | None = None, following: int = _CONTINUATION_CHARS, held_out: bool = True
    ) -> None:
        super().__init__(held_out)
        at_least(1, following=following)
        self.following = following
        self._text = text_of(None if path is None else Path(path))
        if len(self._text) < _LEAST_CHARS:
            raise InputError(f"{path} has {len(self._text)} characters; at least {_LEAST_CHARS} are needed")

    def text(self) -> str:
        return self._text
