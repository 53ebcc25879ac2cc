"""What policies add to reading a prompt: four layers of Mistral 7B's shape, against the full cache."""

from __future__ import annotations

import statistics
from typing import Any

from transformers import DynamicCache

from squeezeattention import SqueezeCache
from squeezeattention.bench.machine import PeakMeter
from squeezeattention.bench.profile import profile_step

from .common import Session, free, random_ids, read_prompt
from .sums import alone

LAYERS = 4


def prefill(session: Session) -> None:
    model = session.model(LAYERS)
    session.note(layers=model.config.num_hidden_layers, dtype=str(model.dtype), repeats="median of up to 3 after one")
    variants: list[tuple[str, str | None, dict[str, Any]]] = [
        ("full", None, {}),
        ("h2o", "h2o", {"kernels": "auto"}),
        ("snapkv", "snapkv", {"kernels": "auto"}),
        ("streaming_llm", "streaming_llm", {"kernels": "auto"}),
        ("h2o, squeeze", "h2o", {"kernels": "auto", "allocator": "squeeze"}),
        ("h2o, torch", "h2o", {"kernels": "torch"}),
    ]
    for batch, prompt in ((1, 16384), (64, 4096)) if not session.tiny else ((1, 96), (2, 48)):
        base: float | None = None
        for name, policy, options in variants:
            found = session.row(
                f"{batch} x {prompt}: {name}",
                lambda b=batch, n=prompt, p=policy, o=options, s=base: _read(model, b, n, p, o, s),
                needs=0 if session.tiny else 6,
            )
            if policy is None and found is not None:
                base = found["seconds"]
    for length in (4096, 16384) if not session.tiny else (64,):
        session.row(f"sums alone, 1 x {length}", lambda n=length: alone(session, n))


def _read(
    model: Any, batch: int, prompt: int, policy: str | None, options: dict[str, Any], base: float | None
) -> dict[str, Any]:
    ids = random_ids(model, batch, prompt)

    def once() -> float:
        if policy is None:
            return read_prompt(model, DynamicCache(config=model.config), ids)
        cache = SqueezeCache(model, 0.2, policy, **{"allocator": "uniform", **options})
        return read_prompt(model, cache, ids)

    first = once()
    free(model.device)
    meter = PeakMeter(model.device)
    times = [once() for _ in range(3 if first < 2 else 1)]
    seconds = statistics.median(times)
    found = {"batch": batch, "prompt": prompt, "policy": policy, **options, "seconds": seconds, "first_s": first,
             "of_full": None if base is None else seconds / base, "grown_bytes": meter.read()}  # fmt: skip
    if seconds > 1:  # a trace of so many launches takes longer to read than to make
        return {**found, "attention": ["not profiled"], "launches": None, "waits": None, "device_s": None}
    seen = profile_step(once, model.device)
    return {**found, "attention": seen.attention, "launches": seen.launches, "waits": seen.waits,
            "device_s": seen.device_s}  # fmt: skip
