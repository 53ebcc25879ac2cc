"""Text while it is generated, and the time that it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

#: What a decoder writes for bytes that are no whole character yet.
_UNFINISHED = "\ufffd"
#: Tokens that are decoded with each new one, at most, and those that are kept of them then: what a token is written as
#: may depend on those before it (a space that leads a text is left out).
_MOST, _KEPT = 64, 16


def decoded(tokenizer: Any, tokens: list[int]) -> str:
    """New tokens as the model wrote them: special tokens left out, spaces as they are."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Timings(NamedTuple):
    """How long a text took."""

    prefill_s: float
    """Seconds until the first new token."""
    decode_s: float
    """Seconds of all others."""
    tokens_per_s: float | None
    """New tokens a second after the first; ``None`` if there was one."""


class Watch:
    """A streamer for ``generate`` that keeps the time and hands on text as soon as it is final.

    All pieces together are what :func:`decoded` gives for all new tokens.
    """

    def __init__(self, tokenizer: Any, show: Callable[[str], object] | None = None) -> None:
        self._tokenizer, self._show = tokenizer, show
        self._times: list[float] = []
        self._tokens: list[int] = []
        self._shown: list[str] = []
        self._from = 0  # the first token that is decoded with the next one
        self._known = ""  # what those from there on were written as

    def put(self, value: Any) -> None:
        """Called with the prompt, ``[1, tokens]``, then with each new token, ``[1]``."""
        self._times.append(time.perf_counter())
        if self._show is None or len(self._times) == 1:
            return
        self._tokens += value.flatten().tolist()
        text = decoded(self._tokenizer, self._tokens[self._from :])
        if text.endswith(_UNFINISHED):
            return
        self._tell(text[len(self._known) :])
        self._known = text
        if len(self._tokens) - self._from >= _MOST:
            self._from = len(self._tokens) - _KEPT
            self._known = decoded(self._tokenizer, self._tokens[self._from :])

    def end(self) -> None:
        """Called when the text is over."""
        self._tell(decoded(self._tokenizer, self._tokens)[sum(map(len, self._shown)) :])

    def _tell(self, text: str) -> None:
        if self._show is not None and text:
            self._show(text)
            self._shown.append(text)

    def timings(self, new_tokens: int) -> Timings:
        start, first, *_, last = [*self._times, self._times[-1]]
        decode = last - first
        rate = (new_tokens - 1) / decode if new_tokens > 1 and decode > 0 else None
        return Timings(first - start, decode, rate)
