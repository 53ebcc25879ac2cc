"""Is it right? Kernels against their twins, caches against the CPU, compiled steps against plain ones."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from squeezeattention import SqueezeCache
from squeezeattention.bench.graphs import SkippedGraphs, forget_compiled
from squeezeattention.bench.profile import profile_step
from squeezeattention.cache.units import Units
from squeezeattention.hf.arguments import cache_name
from squeezeattention.kernels import decode, mass, naive, ragged
from squeezeattention.testing import left_padded, position_ids, tiny_model

from .common import Session, forward
from .sums import compared

#: Largest relative error that counts as the same, by dtype: of the output's largest value.
SAME = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
#: Batch, KV heads, group, tokens, width of keys and of values: odd ones, and Mistral 7B's.
SHAPES = [(3, 2, 7, 301, 40, 24), (2, 8, 4, 1037, 128, 128)]
FAMILIES = ("llama", "gemma2", "gpt-oss", "mistral-window", "deepseek-v3")
LENGTHS, BUDGET = (61, 38), 16


def checks(session: Session) -> None:
    for dtype in SAME:
        for shape in SHAPES if not session.tiny else [(2, 2, 3, 37, 16, 16)]:
            name = f"{str(dtype).removeprefix('torch.')}, {' x '.join(map(str, shape))}"
            session.row(f"decode kernel, {name}", lambda s=shape, d=dtype: _decode(session, s, d), needs=5)
            session.row(f"ragged kernel, {name}", lambda s=shape, d=dtype: _ragged(session, s, d), needs=5)
            session.row(f"column sums, {name}", lambda s=shape, d=dtype: _mass(session, s, d), needs=5)
            session.row(
                f"sums from totals, {name}", lambda s=shape, d=dtype: _verdict(d, **compared(session, s, d)), needs=5
            )
    for family in FAMILIES if not session.tiny else FAMILIES[:1]:
        for policy, options in (
            ("h2o", {"allocator": "squeeze"}), ("snapkv", {}), ("streaming_llm", {"allocator": "squeeze"}),
        ):  # fmt: skip
            if not (family == "deepseek-v3" and policy == "snapkv"):
                session.row(f"{family}, {policy}", lambda f=family, p=policy, o=options: _cache(session, f, p, o))
        if family == FAMILIES[0]:
            for policy in ("h2o", "streaming_llm") if not session.tiny else ("h2o",):
                session.row(f"{family}, compiled, {policy}", lambda p=policy: _compiled(session, p), needs=15)


def _drawn(session: Session, *shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(session.device, dtype)


def _verdict(dtype: torch.dtype, **pairs: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    """Errors over the largest value; ``ok`` if all are within :data:`SAME`, or equal where they are whole numbers."""
    errors: dict[str, Any] = {}
    for name, (got, want) in pairs.items():
        if want.dtype == torch.int64:
            errors[name] = int((got != want).sum())
        else:
            errors[name] = float((got.double() - want.double()).abs().max() / want.double().abs().max())
    return {"ok": all(error <= (SAME[dtype] if isinstance(error, float) else 0) for error in errors.values()),
            "errors": errors}  # fmt: skip


def _decode(session: Session, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """With scores and the next victim, masked holes full of NaN, soft-capped, with learned sinks."""
    batch, heads, group, tokens, width, out = shape
    query = _drawn(session, batch, heads * group, width, dtype=dtype)
    keys = _drawn(session, batch, heads, tokens, width, dtype=dtype, seed=1)
    values = _drawn(session, batch, heads, tokens, out, dtype=dtype, seed=2)
    positions = torch.stack([torch.randperm(2 * tokens)[:tokens] for _ in range(batch * heads)])
    positions = positions.view(batch, heads, tokens).to(session.device)
    positions[:, 0, tokens // 3] = -1
    visible = positions >= 0
    keys[~visible], values[~visible] = torch.nan, torch.nan
    extra = (width**-0.5, 5.0, _drawn(session, heads * group, dtype=torch.float32, seed=4))
    scores = torch.rand(batch, heads, tokens).to(session.device)
    newest, recent = torch.tensor([2 * tokens], device=session.device), tokens // 2
    want, probability = naive.decode_attention(query, keys, values, visible, *extra)
    total = scores + probability
    victim = {"positions": positions, "newest": newest, "recent": recent}
    got, chosen = decode.decode_attention(query, keys, values, visible, *extra, scores=scores, **victim)
    # From the kernel's own scores: sums that differ in the last bit may rank two tokens the other way round.
    expected = naive.victim(scores.cpu(), positions.cpu(), newest.cpu(), recent)
    assert chosen is not None
    return _verdict(dtype, output=(got, want), scores=(scores, total), victim=(chosen.cpu(), expected))


def _ragged(session: Session, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """Units of different room, holes full of NaN, a window, learned sinks, scores and victims."""
    rows, heads, group, tokens, width, out = shape
    room = [
        [1 + (7 * tokens * (row * heads + head + 1)) // 11 % tokens for head in range(heads)] for row in range(rows)
    ]
    units = Units(room, session.device)
    query = _drawn(session, rows * heads, group, width, dtype=dtype)
    keys = _drawn(session, units.slots, width, dtype=dtype, seed=1)
    values = _drawn(session, units.slots, out, dtype=dtype, seed=2)
    at = torch.tensor([3 * tokens + row for row in range(rows)])
    positions = torch.empty(units.slots, dtype=torch.int64)
    for unit, (begin, size) in enumerate(zip(units.begin.tolist(), units.room, strict=True)):
        own = at[unit // heads] - torch.randperm(2 * tokens)[:size]
        own[torch.rand(size) < 0.1] = -1
        own[0] = at[unit // heads]  # the query's own token
        positions[begin : begin + size] = own
    hidden = (positions < 0).to(session.device)
    keys[hidden], values[hidden] = torch.nan, torch.nan
    at, positions = at.to(session.device), positions.to(session.device)
    sinks = _drawn(session, heads * group, dtype=torch.float32, seed=4)
    seen = {"positions": positions, "query_positions": at, "window": tokens, "sink_logits": sinks}
    scores = torch.rand(units.slots).to(session.device)
    recent = (units.rooms + 1) // 2
    want, mass_ = naive.ragged_decode_attention(
        query, keys, values, units.begin, units.rooms, heads, width**-0.5, **seen
    )
    total = scores + mass_
    got, chosen = ragged.ragged_decode_attention(
        query, keys, values, units.begin, units.rooms, max(units.room), heads, width**-0.5, **seen,
        scores=scores, recent=recent,
    )  # fmt: skip
    expected = naive.ragged_victims(
        scores.cpu(), positions.cpu(), units.begin.cpu(), units.rooms.cpu(), heads, at.cpu(), recent.cpu()
    )
    assert chosen is not None
    return _verdict(dtype, output=(got, want), scores=(scores, total), victims=(chosen.cpu(), expected))


def _mass(session: Session, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """Of a padded prompt, in a window and without."""
    batch, heads, group, tokens, width, _ = shape
    query = _drawn(session, batch, heads * group, tokens, width, dtype=dtype)
    keys = _drawn(session, batch, heads, tokens, width, dtype=dtype, seed=1)
    at = torch.arange(tokens, device=session.device).repeat(batch, 1)
    at[0] -= 5
    at = at.clamp(min=-1)
    found = {}
    for name, window in (("whole", None), ("window", tokens // 3)):
        given = (query, keys, at, at[:, None].expand(-1, heads, -1), window, width**-0.5)
        want, _ = naive.attention_mass(*given)
        got, _ = mass.attention_mass(*given)
        found[name] = (got, want)
    return _verdict(dtype, **found)


def _story(session: Session, steps: int) -> tuple[list[list[int]], torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, 101, (length,), generator=generator).tolist() for length in LENGTHS]
    return rows, torch.randint(3, 101, (len(rows), steps), generator=generator)


def _cache(session: Session, family: str, policy: str, options: dict[str, Any]) -> dict[str, Any]:
    """Logits of a padded batch on the device, with each kind of kernels, against the CPU's; fp32."""
    rows, generated = _story(session, 12)
    eager = {"attn_implementation": "eager"} if family == "gemma2" else {}
    model = tiny_model(family, **eager)
    plain = SqueezeCache(model, BUDGET, policy, kernels="torch", **options)
    want = _logits(model, plain, rows, generated)
    kept = [plain.kept_positions(layer) for layer in range(len(plain.layers))]
    plan = [one.to_dict() for one in plain.plans]
    del plain
    model = model.to(session.device)
    found: dict[str, Any] = {"ok": True}
    for kernels in ("auto", "torch") if session.device.type == "cuda" else ("torch",):
        cache = SqueezeCache(model, BUDGET, policy, kernels=kernels, **options)
        got = _logits(model, cache, rows, generated)
        error = float((got - want).abs().max() / want.abs().max())
        moved = sum(
            int((cache.kept_positions(layer).cpu() != one.cpu()).sum()) if _alike(cache.kept_positions(layer), one)
            else -1
            for layer, one in enumerate(kept)
        )  # fmt: skip
        same = [one.to_dict() for one in cache.plans] == plan
        found[kernels] = {"error": error, "kept_elsewhere": moved, "same_plan": same}
        found["ok"] &= error <= SAME[torch.float32]
    return found


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape


def _logits(model: Any, cache: Any, rows: list[list[int]], generated: torch.Tensor) -> torch.Tensor:
    """Of the real tokens of a left-padded batch, and of tokens given one by one, fp32 on the CPU."""
    ids, mask = left_padded(rows)
    mask = torch.cat([mask, torch.ones_like(generated)], dim=1)
    positions = position_ids(mask)
    ids = torch.cat([ids, generated], dim=1)
    parts, start = [], ids.shape[1] - generated.shape[1]
    for first, stop in ((0, start), *((at, at + 1) for at in range(start, ids.shape[1]))):
        given = {cache_name(model): cache, "attention_mask": mask[:, :stop].to(model.device)}
        own = slice(first, stop)
        parts.append(model(input_ids=ids[:, own].to(model.device), position_ids=positions[:, own].to(model.device),
                           use_cache=True, **given).logits.cpu())  # fmt: skip
    return torch.cat(parts, dim=1)[mask.bool()]


def _compiled(session: Session, policy: str) -> dict[str, Any]:
    """Greedy tokens of compiled steps against plain ones; CUDA graphs and recompilations counted."""
    from torch._dynamo.utils import counters

    steps, plans = 24, ([12, 20], [16, 16]) if not session.tiny else ([12], [16])
    model = tiny_model(FAMILIES[0], num_hidden_layers=len(plans[0])).to(session.device)
    prompts = [torch.randint(3, 101, (2, length), generator=torch.Generator().manual_seed(length)).to(session.device)
               for length in (80, 90)]  # fmt: skip
    forget_compiled(session.device)
    found: dict[str, Any] = {}
    same = []
    with warnings.catch_warnings(record=True) as told, SkippedGraphs() as skips:
        warnings.simplefilter("always")
        cache = SqueezeCache(model, policy=policy, allocator=list(plans[0]), compile=True)
        for index, (ids, plan) in enumerate(zip(prompts, plans, strict=True)):
            if index:
                cache = SqueezeCache(model, policy=policy, allocator=list(plan), compile=True)
            before = counters["stats"]["unique_graphs"]
            tokens = _greedy(model, cache, ids, steps)
            found[("graphs_of_first_prompt", "graphs_of_second_prompt")[index]] = (
                counters["stats"]["unique_graphs"] - before
            )
            plain = SqueezeCache(model, policy=policy, allocator=list(plan), kernels="torch")
            same.append(bool((tokens == _greedy(model, plain, ids, steps)).all()))
        with torch.no_grad():
            seen = profile_step(
                lambda: _step(model, cache, tokens[:, -1:], prompts[1].shape[1] + steps), session.device
            )
    found["graph_replays"] = seen.graph_replays
    found["launches_beside"] = seen.launches
    found["equal_tokens"] = same
    found["graphs_skipped"] = skips.count if session.device.type == "cuda" else 0
    found["skip_reasons"] = skips.reasons
    found["warnings"] = [f"{one.category.__name__}: {one.message}" for one in told if _of_interest(one)]
    replayed = seen.graph_replays > 0 or session.device.type != "cuda"
    found["ok"] = all(same) and replayed and not any("CompileWarning" in text for text in found["warnings"])
    return found


def _of_interest(one: warnings.WarningMessage) -> bool:
    return not issubclass(one.category, DeprecationWarning)


def _greedy(model: Any, cache: Any, ids: torch.Tensor, steps: int) -> torch.Tensor:
    tokens = [forward(model, cache, ids, 0).argmax(-1)]
    for index in range(steps):
        tokens.append(_step(model, cache, tokens[-1], ids.shape[1] + index))
    return torch.cat(tokens, dim=1)


def _step(model: Any, cache: Any, token: torch.Tensor, at: int) -> torch.Tensor:
    return forward(model, cache, token, at).argmax(-1).clone()
