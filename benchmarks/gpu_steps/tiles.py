"""Ways to cut the work of the decode kernel for heads of any length, timed against reading its bytes once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from squeezeattention.bench import measure_bandwidth
from squeezeattention.cache.units import Units
from squeezeattention.kernels import ragged

from .common import Session, timed

#: Slots read together, warps, stages.
TILES = (
    (64, 4, 5), (64, 4, 3), (64, 4, 2), (64, 8, 3), (64, 2, 3), (32, 4, 5), (32, 2, 5), (32, 4, 3), (128, 4, 3),
    (128, 4, 2), (128, 8, 2), (128, 8, 3),
)  # fmt: skip
#: Rows and tokens a head: a fifth of 4,096 for 64, of 16,384 for 16, of 4,096 for one.
LOADS = ((64, 819), (16, 3277), (1, 819))
HEADS, GROUP, WIDTH = 8, 4, 128
#: Bytes of keys and values that are read in turn, so that none of them is still in a cache.
_BEYOND_CACHES = 2**28


def tiles(session: Session) -> None:
    """With scores and victims, which need more room, and without."""
    bandwidth = measure_bandwidth(session.device).bytes_per_s
    session.note(bandwidth=bandwidth, heads=HEADS, group=GROUP, width=WIDTH)
    for scores in (False, True):
        name = "scores and victims" if scores else "outputs"
        for rows, tokens in LOADS if not session.tiny else ((2, 80),):
            load = _Load(session, rows, tokens, scores)
            for one in TILES if rows == LOADS[0][0] else TILES[:2]:
                session.row(f"{name}, {rows} x {tokens}: {one}", lambda t=one, d=load: d.time(bandwidth, t, None),
                            needs=3)  # fmt: skip
            for span in (256, 448, 832, 1664) if rows == LOADS[0][0] and not session.tiny else ():
                session.row(f"{name}, {rows} x {tokens}: splits of {span}",
                            lambda n=span, d=load: d.time(bandwidth, TILES[0], n), needs=3)  # fmt: skip
        if not scores:
            load = _Load(session, *(LOADS[0] if not session.tiny else (2, 80)), scores=False)
            session.row(f"{name}, first load, no holes", lambda d=load: d.time(bandwidth, TILES[1], None, dense=True))


class _Load:
    def __init__(self, session: Session, rows: int, tokens: int, scores: bool) -> None:
        self.session, self.rows, self.tokens = session, rows, tokens
        heads, group, width = (HEADS, GROUP, WIDTH) if not session.tiny else (2, 2, 16)
        room = -(-tokens // 32) * 32
        units = Units([[room] * heads] * rows, session.device)
        dtype = torch.bfloat16 if not session.tiny else torch.float32
        drawn: dict[str, Any] = {"dtype": dtype, "device": session.device}
        self.heads = heads
        self.query = torch.randn(rows * heads, group, width, **drawn)
        layers = 2 if session.tiny else max(8, -(-_BEYOND_CACHES // (2 * units.slots * width * 2)))
        self.layers = [tuple(torch.randn(units.slots, width, **drawn) for _ in range(2)) for _ in range(layers)]
        column = units.of_slot[1]
        positions = torch.where(column < tokens, column, -2)
        at = torch.full((1,), tokens, device=session.device)
        self.given: dict[str, Any] = {"positions": positions, "query_positions": at}
        self.units = units
        self.rooms = torch.full_like(units.rooms, tokens)
        if scores:
            self.given |= {
                "scores": torch.rand(units.slots, device=session.device), "recent": (units.rooms + 1) // 2,
            }  # fmt: skip

    def time(
        self, bandwidth: float, tiles: tuple[int, int, int], span: int | None, dense: bool = False
    ) -> dict[str, Any]:
        def call(keys: torch.Tensor, values: torch.Tensor) -> None:
            ragged.ragged_decode_attention(
                self.query, keys, values, self.units.begin, self.rooms, self.tokens, self.heads, WIDTH**-0.5,
                **self.given, dense=dense, tiles=ragged.Tiles(*tiles), span=span,
            )  # fmt: skip

        ms = in_graph(self.session, [lambda one=one: call(*one) for one in self.layers])
        each = sum(one.nbytes for one in self.layers[0]) / self.units.slots  # bytes of a slot
        read = each * self.tokens * self.rows * self.heads
        return {"tiles": tiles, "span": span, "call_ms": ms, "of_bound": 1e3 * read / bandwidth / ms}


def in_graph(session: Session, calls: Sequence[Callable[[], None]]) -> float:
    """Milliseconds of one of ``calls``, all of them replayed as one CUDA graph: no host is waited for."""
    for call in calls[:2]:
        call()
    if session.device.type != "cuda":
        return timed(session.device, calls[0], rounds=2)
    torch.cuda.synchronize(session.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return timed(session.device, graph.replay, rounds=10) / len(calls)
