"""Signals for ``--include``: what ``probe`` repeats of a text, in other sizes and from other places.

``squeeze eval run ... --include benchmarks/samples.py --policy h2o/probe:signal=replay-1x32``; ``results.py --only
sampling`` measures them all.
"""

from __future__ import annotations

from functools import partial

from squeezeattention.signals import SIGNALS, Replay

#: Pieces by tokens of each; probe's own is 4 x 32.
SIZES = ((1, 32), (4, 8), (2, 32), (1, 128), (8, 32), (16, 32), (4, 128))
#: What is not about the size: name -> setting.
OTHERS = {"lead-0": {"lead": 0}, "lead-32": {"lead": 32}, "share-0.1": {"share": 0.1}, "share-0.4": {"share": 0.4}}
#: Parts of the text that all pieces are taken from.
PLACES = {"first": (0.0, 0.25), "last": (0.75, 1.0)}
NAMES = (*(f"replay-{pieces}x{length}" for pieces, length in SIZES), *(f"replay-{name}" for name in OTHERS),
         *(f"replay-{name}-quarter" for name in PLACES))  # fmt: skip


class PartOf(Replay):
    """As :class:`Replay`, from a part of the text: the shares of it where that begins and ends."""

    def __init__(self, begin: float, end: float) -> None:
        super().__init__()
        self._part = begin, end

    def starts(self, tokens: int) -> list[int]:
        begin, end = (int(share * tokens) for share in self._part)
        return [begin + start for start in super().starts(end - begin)]


for pieces, length in SIZES:
    SIGNALS.register(f"replay-{pieces}x{length}", partial(Replay, pieces=pieces, length=length), replace=True)
for name, given in OTHERS.items():
    SIGNALS.register(f"replay-{name}", partial(Replay, **given), replace=True)  # type: ignore[arg-type]
for name, part in PLACES.items():
    SIGNALS.register(f"replay-{name}-quarter", partial(PartOf, *part), replace=True)
