"""A cache as a file, and back: settings, what was read, and what each layer holds.

A cache is made anew for the model at hand, by its settings and with all their checks; then what reading a text has
changed in the one that was saved is put in place. What belongs to the model is taken from the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..allocators import Fixed
from ..device import execution_device
from ..errors import CacheFileError, CacheStateError
from ..hf.layout import Layout, inspect_model
from ..hf.offsets import put_offsets
from ..plan import BudgetPlan
from ..signals import Cosine
from .cache_file import read, write
from .packing import Packer, Unpacker
from .ragged import RaggedStore
from .store import LayerStore
from .units import Units

if TYPE_CHECKING:
    from .cache import SqueezeCache
    from .layer import SqueezeLayer

#: Settings, what belongs to the model, and what a step makes anew where it is not there.
_NOT_OF_A_LAYER = {
    "index", "window", "policy", "rerotation", "accelerated", "parts", "_store", "_blocks", "scorer", "_next_slot",
    "_handed", "dtype", "device", "dtypes",
}  # fmt: skip
_NOT_OF_A_SCORER = {"policy", "window", "parts"}
#: What a config may say of a model without changing the keys and values that it makes.
_BESIDE_THE_POINT = {
    "transformers_version", "dtype", "torch_dtype", "use_cache", "return_dict", "architectures", "id2label", "label2id",
    "problem_type",
}  # fmt: skip


def save_cache(cache: SqueezeCache, path: str | os.PathLike[str]) -> None:
    """See :meth:`SqueezeCache.save`."""
    cache._check_usable()
    if cache._in_prefill or any(step.cache is cache for step in cache._attachment.open_steps):
        raise CacheStateError("a prompt is being read into this cache: save it when that is over")
    cache.compact()
    packer = Packer()
    state = {name: getattr(cache, name) for name in _state_names(type(cache))}
    content = {
        "plans": [plan.to_dict() for plan in cache._plans],
        "model": _description(cache._attachment.layout),
        "devices": [str(_device_of(layer, cache)) for layer in cache.layers],
        "settings": packer.pack_state(_settings(cache), "settings"),
        "signal": packer.pack(cache.signal, "signal"),
        "state": packer.pack_state(state, "state"),
        "layers": [_pack_layer(packer, layer, f"layers.{layer.index}") for layer in cache.layers],
    }
    write(path, content, packer.tensors)


def load_cache(
    kind: type[SqueezeCache],
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    compile: bool | str | None,
    kernels: str | None,
) -> SqueezeCache:
    """See :meth:`SqueezeCache.load`."""
    content, tensors = read(path)
    where = os.fspath(path)
    layout = inspect_model(model)
    _check_model(where, content["model"], _description(layout))
    now = [execution_device(attention) for attention in layout.attentions]
    unpacker = Unpacker(tensors, _moves(where, content["devices"], now))
    settings = unpacker.unpack_state(content["settings"])
    signal = unpacker.unpack(content["signal"])
    machine = {"compile": compile, "kernels": kernels}
    settings |= {name: value for name, value in machine.items() if value is not None}
    cache = kind(model, **settings, signal=signal if settings["allocator"].needs_signal else None)
    try:
        cache.signal = signal
        cache._plans = [BudgetPlan.from_dict(plan) for plan in content["plans"]]
        _put(cache, unpacker.unpack_state(content["state"]), where)
        for layer, packed in zip(cache.layers, content["layers"], strict=True):
            _put_layer(layer, packed, unpacker, where)
        cache._leave_inference_mode()
        put_offsets(model, cache._offsets)
    except BaseException:
        cache.detach()
        raise
    return cache


def _state_names(kind: type[SqueezeCache]) -> list[str]:
    """Attributes that a cleared cache begins with: what reading changes. Others may set more, as ``generate`` does."""
    bare = object.__new__(kind)
    bare.layers, bare.signal = [], Cosine()
    bare._clear()
    return sorted(vars(bare).keys() - {"layers", "signal", "_static", "_at", "_plans"})


def _settings(cache: SqueezeCache) -> dict[str, Any]:
    """The constructor's arguments that make such a cache."""
    return {
        "budget": None if isinstance(cache.allocator, Fixed) else cache._budget,
        "policy": cache.policy,
        "allocator": cache.allocator,
        "new_tokens": cache._new_tokens,
        "min_tokens": cache._planner.min_tokens,
        "prefill": cache.prefill,
        "chunk_size": cache.chunk_size,
        "compile": cache.compile,
        "kernels": cache._kernels_asked,
    }


# ----------------------------------------------------------------------- model


def _description(layout: Layout) -> dict[str, Any]:
    """What a model's keys and values follow from, as far as it is told cheaply."""
    from ..calibration.weights import sample_weights

    decoder = layout.decoder
    config = json.loads(json.dumps(layout.config.to_dict(), default=lambda value: type(value).__name__))
    return {
        "shape": layout.fingerprint,
        "weights": list(sample_weights(decoder)),
        "dtype": str(next(decoder.parameters()).dtype),
        "config": {
            name: value
            for name, value in config.items()
            if name[0] != "_" and not name.startswith("output_") and not name.endswith("token_id")
            if name not in _BESIDE_THE_POINT
        },
    }


def _check_model(where: str, saved: dict[str, Any], here: dict[str, Any]) -> None:
    """:class:`CacheFileError` unless both are of one model."""
    for name in ("shape", "dtype"):
        if saved[name] != here[name]:
            raise CacheFileError(
                f"{where} is a cache of a model of {name} {saved[name]}, but this one's is {here[name]}"
            )
    # Other releases of transformers know other names.
    both = saved["config"].keys() & here["config"].keys()
    if differs := sorted(name for name in both if saved["config"][name] != here["config"][name]):
        raise CacheFileError(
            f"{where} is a cache of another model: their configs differ in "
            + ", ".join(f"{name} ({saved['config'][name]!r}, here {here['config'][name]!r})" for name in differs)
        )
    if not saved["weights"] or not here["weights"]:
        raise CacheFileError(f"{where} cannot be told to be of this model: its weights are not at hand")
    if saved["weights"] != here["weights"]:
        raise CacheFileError(f"{where} is a cache of another {saved['shape']}: the weights differ")


def _device_of(layer: SqueezeLayer, cache: SqueezeCache) -> torch.device:
    return layer.device if layer.is_initialized else execution_device(cache._attachment.layout.attentions[layer.index])


def _moves(where: str, saved: Sequence[str], now: Sequence[torch.device]) -> Callable[[str], torch.device]:
    """Where what lay on a device belongs, where layers may lie elsewhere than they did."""
    places: dict[str, torch.device] = {}
    for before, device in zip(saved, now, strict=True):
        if places.setdefault(before, device) != device:
            raise CacheFileError(
                f"{where} was saved with layers on one device, {before}, that are on {places[before]} and {device} "
                "here: load the model as it was, or all of it on one device"
            )
    return lambda device: places.get(device, torch.device("cpu") if device == "cpu" else now[0])


# ---------------------------------------------------------------------- layers


def _pack_layer(packer: Packer, layer: SqueezeLayer, where: str) -> dict[str, Any]:
    held = layer.store  # first: whoever asks ends what there was for compiled steps
    state = {name: value for name, value in vars(layer).items() if name not in _NOT_OF_A_LAYER}
    if layer.is_initialized:
        state |= {"device": layer.device, "dtypes": layer.dtypes}
    scorer = None
    if layer.scorer is not None:
        own = {name: value for name, value in vars(layer.scorer).items() if name not in _NOT_OF_A_SCORER}
        scorer = packer.pack_state(own, f"{where}.scorer")
    store = _ragged_state(held) if isinstance(held, RaggedStore) else _rectangle_state(held)
    return {
        "state": packer.pack_state(state, where),
        "scorer": scorer,
        "store": packer.pack_state(store, f"{where}.store"),
    }


def _put_layer(layer: SqueezeLayer, packed: dict[str, Any], unpacker: Unpacker, where: str) -> None:
    store = unpacker.unpack_state(packed["store"])
    state = unpacker.unpack_state(packed["state"])
    if state["is_initialized"]:
        layer.device, layer.dtypes = state.pop("device"), state.pop("dtypes")
        layer.dtype = layer.dtypes[0]
    _put(layer, state, where)
    if layer.scorer is not None:
        _put(layer.scorer, unpacker.unpack_state(packed["scorer"]), where)
        if layer.scorer.statistics is not None and layer.parts.turning is not None:
            layer.scorer.statistics._turning = layer.parts.turning
    if "room" in store:
        layer.store = _ragged_of(store, layer)
    else:
        for name, value in store.items():
            setattr(layer.store, name, value)
    if layer._settled:  # buffers that a compiler, or a CUDA graph, is to know
        if isinstance(layer.store, RaggedStore):
            layer.store.settle()
        else:
            layer.store.settle(layer.store.used, layer.store.shape[0])


def _rectangle_state(store: LayerStore) -> dict[str, Any]:
    """Without the spare room."""
    if store.is_empty:
        return {"used": 0}
    keys, values = store.view()
    return {
        "keys": keys,
        "values": values,
        "positions": store.used_positions(),
        "scores": store.used_scores(),
        "used": store.used,
    }


def _ragged_state(store: RaggedStore) -> dict[str, Any]:
    heads = store.units.heads
    return {
        "room": [list(store.units.room[row * heads : (row + 1) * heads]) for row in range(store.units.rows)],
        "keys": store.keys,
        "values": store.values,
        "positions": store.positions,
        "scores": store.scores,
        "runs": [(run.full, run.full_at, run.sink_keys) for run in store.runs],
    }


def _ragged_of(state: dict[str, Any], layer: SqueezeLayer) -> RaggedStore:
    keys = state["keys"]
    units = Units(state["room"], keys.device)
    store = RaggedStore(units, keys, state["values"], state["positions"], state["scores"])
    store.note_policy(layer.policy, layer.window)
    for run, (full, full_at, sink_keys) in zip(store.runs, state["runs"], strict=True):
        run.full, run.full_at, run.sink_keys = full, full_at, sink_keys
    return store


def _put(target: Any, state: dict[str, Any], where: str) -> None:
    """Set attributes, all of which ``target`` has."""
    if unknown := sorted(set(state) - set(vars(target))):
        raise CacheFileError(f"{where} says of a {type(target).__name__} what it has not: {', '.join(unknown)}")
    vars(target).update(state)
