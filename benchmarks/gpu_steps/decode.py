"""A decode step of Mistral 7B's shape against the bound of bandwidth: all 32 layers, bf16, a fifth kept.

A step's time does not depend on which tokens a cache holds. So full caches are filled with random keys and values, and
squeezed ones by a prompt a little longer than what they keep.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as attention

from squeezeattention.bench import measure_bandwidth
from squeezeattention.bench.graphs import forget_compiled
from squeezeattention.bench.profile import profile_step

from .common import (
    BEYOND,
    Session,
    decode_steps,
    full_cache,
    squeezed_cache,
    static_cache,
    static_steps,
    timed,
)

SHARE = 0.2
#: What the KV heads of the ragged rows keep, over the average; turned by one head from layer to layer.
RAGGED = (0.25, 0.5, 0.75, 1.0, 1.0, 1.25, 1.5, 1.75)


class Load:
    """A batch of prompts on a model, and the ways to hold its cache."""

    def __init__(self, session: Session, model: Any, bandwidth: float, batch: int, prompt: int) -> None:
        self.session, self.model, self.bandwidth = session, model, bandwidth
        self.batch, self.prompt = (min(batch, 2), min(prompt, 80 if prompt < 10000 else 160)) if session.tiny else (
            batch, prompt
        )  # fmt: skip
        self.kept = round(SHARE * self.prompt)
        self.name = f"{batch} x {prompt}"

    def measure(self, what: str, **options: Any) -> dict[str, Any] | None:
        """One row: ``what`` is "full", "static", "ragged" or a policy's name."""
        compiled = what == "static" or options.get("compile", False)
        if self.session.tiny and options.get("compile"):
            return None  # minutes of C++; the checks compile a smaller model
        parts = [{"static": "full, static", "ragged": "by head"}.get(what, what)]
        parts += [f"{key} {value}" for key, value in options.items() if key != "compile"]
        parts += ["compiled"] if compiled else []
        needs = 2.0 if self.session.tiny else 40.0 if compiled else 8.0
        return self.session.row(f"{self.name}: {', '.join(parts)}", lambda: self._steps(what, compiled, options),
                                needs=needs)  # fmt: skip

    def _steps(self, what: str, compiled: bool, options: dict[str, Any]) -> dict[str, Any]:
        model, batch = self.model, self.batch
        steps, warm_up = (3, 2) if self.session.tiny else (20, 6 if compiled else 4)
        timing = {"steps": steps, "warm_up": warm_up, "bandwidth": self.bandwidth,
                  "turns": self.session.turns}  # fmt: skip
        row = {"what": what, "batch": batch, "prompt": self.prompt, "compiled": compiled,
               "kernels": options.get("kernels")}  # fmt: skip
        if compiled:
            forget_compiled(model.device)
        try:
            if what == "full":
                return row | decode_steps(model, full_cache(model, batch, self.prompt), batch, self.prompt, **timing)
            if what == "static":
                cache = static_cache(model, batch, self.prompt, steps + warm_up + 2)
                backend = "eager" if self.session.tiny else "inductor"  # tracing is what a dry run is about
                return row | static_steps(model, cache, batch, self.prompt, backend=backend, **timing)
            budget: Any = self.kept
            if what == "ragged":
                heads = model.config.num_key_value_heads
                shares = [RAGGED[index * len(RAGGED) // heads] for index in range(heads)]
                shares = [share * heads / sum(shares) for share in shares]
                budget = [[round(self.kept * shares[(head + layer) % heads]) for head in range(heads)]
                          for layer in range(model.config.num_hidden_layers)]  # fmt: skip
            policy = options.pop("policy") if what == "ragged" else what
            cache = squeezed_cache(model, batch, budget, policy=policy, **options)
            filled = cache.get_seq_length()
            row |= {"policy": policy, "filled_by": int(filled), "kept": self.kept}
            return row | decode_steps(model, cache, batch, int(filled), **timing)
        finally:
            if compiled:
                forget_compiled(model.device)


def _start(session: Session) -> tuple[Any, float]:
    with session.turns.row(), session.turns.alone():
        bandwidth = measure_bandwidth(session.device).bytes_per_s
    model = session.model()
    session.note(
        bandwidth=bandwidth, layers=model.config.num_hidden_layers, dtype=str(model.dtype), share=SHARE,
        filled=f"full: random keys and values; squeezed: a prompt of {BEYOND} tokens more than the largest budget",
    )  # fmt: skip
    return model, bandwidth


def decode(session: Session) -> None:
    """64 prompts of 4,096."""
    load = Load(session, *_start(session), 64, 4096)
    load.measure("full")
    load.measure("streaming_llm", kernels="auto")
    load.measure("h2o", kernels="auto")
    load.measure("static")
    session.row(f"{load.name}: attention alone", lambda: _attention(load))
    load.measure("streaming_llm", kernels="auto", compile=True)
    load.measure("ragged", policy="h2o", kernels="auto")
    load.measure("h2o", kernels="auto", compile=True)
    load.measure("ragged", policy="h2o", kernels="auto", compile=True)
    load.measure("h2o", kernels="torch")
    load.measure("streaming_llm", kernels="torch")
    load.measure("ragged", policy="streaming_llm", kernels="auto")


def _attention(load: Load) -> dict[str, Any]:
    """One layer's attention of a step over the whole prompt, as torch can be asked for it: milliseconds, the share of
    the bound, and the kernels."""
    config, device = load.model.config, load.model.device
    width = config.head_dim or config.hidden_size // config.num_attention_heads
    heads, query_heads = config.num_key_value_heads, config.num_attention_heads
    drawn: dict[str, Any] = {"dtype": load.model.dtype, "device": device}
    query = torch.randn(load.batch, query_heads, 1, width, **drawn)
    keys, values = (torch.randn(load.batch, heads, load.prompt, width, **drawn) for _ in range(2))
    mask = torch.ones(load.batch, 1, 1, load.prompt, dtype=torch.bool, device=device)
    packed = query.view(load.batch, heads, query_heads // heads, width)
    ways: dict[str, Any] = {
        "grouped by torch, no mask": lambda: attention(query, keys, values, enable_gqa=True),
        "packed, no mask": lambda: attention(packed, keys, values),
        "packed, masked": lambda: attention(packed, keys, values, attn_mask=mask),
        "repeated, masked": lambda: attention(
            query, *(one.repeat_interleave(query_heads // heads, 1) for one in (keys, values)), attn_mask=mask
        ),
    }
    found = {}
    for name, way in ways.items():
        try:
            spent = timed(device, way)
            found[name] = {"ms": spent, "of_bound": 1e3 * (keys.nbytes + values.nbytes) / load.bandwidth / spent,
                           "attention": profile_step(way, device).attention}  # fmt: skip
        except RuntimeError as error:  # this way is not there
            found[name] = {"failed": str(error)[:300]}
    return {"alone": found}


def loads(session: Session) -> None:
    """Other batches and lengths."""
    model, bandwidth = _start(session)
    several = [Load(session, model, bandwidth, *size) for size in ((1, 4096), (32, 4096), (1, 16384), (16, 16384))]
    for load in several:
        load.measure("full")
        load.measure("streaming_llm", kernels="auto")
        load.measure("h2o", kernels="auto")
    if session.tiny:
        return
    for load in several:
        load.measure("streaming_llm", kernels="auto", compile=True)
        load.measure("static")
