"""The filler of RULER and of the passkey test: sentences that say nothing, the same again and again."""

from __future__ import annotations

import random
from collections.abc import Sequence

FILLER = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")


def hide(rng: random.Random, lines: Sequence[str], sentences: int) -> tuple[str, list[int]]:
    """``lines`` in their order at random places among lines of filler, five sentences each, none at the very end.

    Returns the text and the number of each of the ``lines`` in it (from 0). No two go into one gap, unless they
    are more than the gaps. The last line of filler may be shorter than the others.
    """
    whole, rest = divmod(sentences, len(FILLER))
    text = [" ".join(FILLER)] * whole
    if rest:
        text.append(" ".join(FILLER[:rest]))
    gaps = range(len(text))
    places = sorted(rng.sample(gaps, len(lines)) if len(lines) <= len(gaps) else rng.choices(gaps, k=len(lines)))
    numbers = [place + shift for shift, place in enumerate(places)]
    for number, line in zip(numbers, lines, strict=True):
        text.insert(number, line)
    return "\n".join(text), numbers
