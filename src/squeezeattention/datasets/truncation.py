"""LongBench's truncation: what is too long loses its middle, since both ends carry instructions."""

from __future__ import annotations

from ..errors import ConfigError
from ..tasks.base import CountTokens


def without_middle(text: str, limit: int, count: CountTokens, *, following: int = 0) -> str:
    """``text`` cut in its middle, so that it and ``following`` more tokens take at most ``limit`` tokens.

    Half of the limit is kept from the beginning; the end keeps the other half, of which ``following`` (the
    question, which is never cut) is part. Cut between characters, so the count may stay a token or two below
    the limit. Raises :class:`ConfigError` if the question leaves nothing of the end.
    """
    if count(text) + following <= limit:
        return text
    front, back = limit // 2, limit - limit // 2 - following
    if back < 1:
        raise ConfigError(f"a question of {following} tokens does not fit into {limit} tokens with its context")
    head = _longest(text, front, count, from_end=False)
    while back > 0:
        cut = head + _longest(text, back, count, from_end=True)
        excess = count(cut) + following - limit
        if excess <= 0:  # what meets at the cut may be more tokens than it was apart
            return cut
        back -= excess
    return head


def _longest(text: str, tokens: int, count: CountTokens, *, from_end: bool) -> str:
    """About the longest piece at one end of ``text`` that takes at most ``tokens`` tokens.

    Counting is all that a tokenizer is asked for. The next length to try is guessed from the last count, and
    every third one halves what is left, so that few of the counts are of long texts.
    """

    def piece(length: int) -> str:
        return text[len(text) - length :] if from_end else text[:length]

    fits, too_long = 0, len(text) + 1
    guess, tries = min(len(text), 4 * tokens), 0  # four characters a token, to begin with
    while too_long - fits > 1:
        tries += 1
        guess = (fits + too_long) // 2 if tries % 3 == 0 else min(max(guess, fits + 1), too_long - 1)
        taken = count(piece(guess))
        if taken <= tokens:
            fits = guess
            if taken == tokens:
                break
        else:
            too_long = guess
        guess = round(guess * tokens / max(1, taken))
    return piece(fits)
