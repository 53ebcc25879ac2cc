"""Signals for ``--include``: what ``probe`` repeats of a text, in other sizes and from other places.

``squeeze eval run ... --include benchmarks/samples.py --policy h2o/probe:signal=replay-1x32``; ``results.py --only
sampling`` measures them all.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from squeezeattention.signals import SIGNALS, Replay

#: Pieces by tokens of each; probe's own is 4 x 32.
SIZES = ((1, 32), (4, 8), (2, 32), (1, 128), (8, 32), (16, 32), (4, 128))
#: What is not about the size: name -> setting.
OTHERS = {"lead-0": {"lead": 0}, "lead-32": {"lead": 32}, "share-0.1": {"share": 0.1}, "share-0.4": {"share": 0.4},
          "first-quarter": {"until": 0.25}}  # fmt: skip
LAST = "last-quarter"
NAMES = tuple(f"replay-{name}" for name in (*(f"{pieces}x{length}" for pieces, length in SIZES), *OTHERS, LAST))


class LastQuarter(Replay):
    """As :class:`Replay`, from the end of the text."""

    def starts(self, tokens: int) -> list[int]:
        begin = 3 * tokens // 4
        return [begin + start for start in super().starts(tokens - begin)]


def register() -> None:
    """Make them known by name."""
    for pieces, length in SIZES:
        SIGNALS.register(f"replay-{pieces}x{length}", partial(Replay, pieces=pieces, length=length))
    for name, given in OTHERS.items():
        SIGNALS.register(f"replay-{name}", partial(Replay, **given))  # type: ignore[arg-type]
    SIGNALS.register(f"replay-{LAST}", LastQuarter)


if __name__ != Path(__file__).stem:  # included; who imports it wants names alone
    register()
