"""Where attention joins the residual stream, found by looking rather than from a table.

The signal needs the stream right after attention was added and before the MLP. Families differ: Llama adds the
attention output itself, Granite a scaled one, Gemma 2 and OLMo 2 a normalised one, and Falcon or GPT-NeoX add
attention and MLP in parallel. One forward of a few tokens tells which child of a layer receives
``h + s * f(attention)``; where none does, the block is parallel and the sum is formed here (the MLP left out).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ..device import execution_device
from ..errors import SqueezeError, UnsupportedModelError
from .layout import Layout

_PROBE_TOKENS = 6


@dataclass(frozen=True)
class ResidualSpot:
    """How to read the stream after attention in one layer."""

    child: str | None
    """The layer's child whose input it is; ``None``: the layer's input plus ``scale`` * attention output."""
    scale: float = 1.0


class _Seen(NamedTuple):
    name: str
    given: torch.Tensor
    output: torch.Tensor


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The hidden states among a module's arguments."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0]
    found = kwargs.get("hidden_states")
    return found if isinstance(found, torch.Tensor) else None


def output_tensor(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def find_spots(model: nn.Module, layout: Layout) -> tuple[ResidualSpot, ...]:
    """One spot per layer; raises :class:`UnsupportedModelError` if a layer's sum cannot be recognised."""
    records: dict[int, dict[str, Any]] = {i: {"children": []} for i in range(layout.n_layers)}
    handles = []
    try:
        for index, (layer, attention) in enumerate(zip(layout.layers, layout.attentions, strict=True)):
            record = records[index]
            handles.append(layer.register_forward_pre_hook(_recorder(record, "input"), with_kwargs=True))
            handles.append(layer.register_forward_hook(_output_recorder(record, "output")))
            handles.append(attention.register_forward_hook(_output_recorder(record, "attention")))
            for name, child in layer.named_children():
                handles.append(child.register_forward_hook(_child_recorder(record, name), with_kwargs=True))
        vocabulary = int(layout.config.vocab_size)
        ids = torch.arange(_PROBE_TOKENS).mul(7).add(3).remainder(vocabulary)[None]
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad():
                _read(model, layout, records, ids)
        finally:
            for module, mode in modes.items():
                module.training = mode
    finally:
        for handle in handles:
            handle.remove()
    return tuple(_spot(record, index, layout) for index, record in records.items())


def _read(model: nn.Module, layout: Layout, records: dict[int, dict[str, Any]], ids: torch.Tensor) -> None:
    """Read some tokens, with the decoder alone where the model wants more than text (BLIP-2 an image)."""
    for reader in (model, layout.decoder):
        for record in records.values():
            record["children"].clear()
        try:
            reader(input_ids=ids.to(execution_device(reader)), use_cache=False)
            return
        except SqueezeError:
            raise
        except Exception as error:
            failed = error
    raise UnsupportedModelError(
        f"{type(model).__name__} does not read a few tokens of text alone ({failed}), so it cannot be found where its "
        'layers add attention, which this signal looks at; use allocator "probe", "uniform" or fixed budgets'
    ) from failed


def _recorder(record: dict[str, Any], key: str) -> Any:
    thread = threading.get_ident()  # another thread may run the same model meanwhile

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != thread:
            return
        tensor = first_tensor(args, kwargs)
        record[key] = None if tensor is None else tensor.detach().double().cpu().clone()

    return hook


def _output_recorder(record: dict[str, Any], key: str) -> Any:
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() != thread:
            return
        record[key] = output_tensor(output).detach().double().cpu().clone()

    return hook


def _child_recorder(record: dict[str, Any], name: str) -> Any:
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if threading.get_ident() != thread:
            return
        given, made = first_tensor(args, kwargs), output_tensor(output)
        if given is not None and isinstance(made, torch.Tensor):
            seen = _Seen(name, given.detach().double().cpu().clone(), made.detach().double().cpu().clone())
            record["children"].append(seen)

    return hook


def _spot(record: dict[str, Any], index: int, layout: Layout) -> ResidualSpot:
    before, attention = record.get("input"), record.get("attention")
    if before is None or attention is None:
        raise UnsupportedModelError(f"layer {index} of {type(layout.decoder).__name__} did not run when probed")
    if attention.numel() != before.numel():  # several streams side by side, as in Gemma 3n
        raise _not_found(index, layout)
    attention = attention.reshape(before.shape)
    tolerance = 1e-4 if _is_single(layout.layers[index]) else 2e-2
    branches = [attention]  # what may have been added to the stream: attention, or a norm of it
    for child in record["children"]:
        moved = child.given.reshape(before.shape) - before if child.given.numel() == before.numel() else None
        if moved is not None and moved.norm() > tolerance * before.norm():
            for branch in branches:
                scale = (moved * branch).sum() / branch.square().sum().clamp(min=1e-30)
                if scale > 0 and (moved - scale * branch).norm() <= tolerance * child.given.norm():
                    return ResidualSpot(child.name)
        if child.output.numel() == before.numel():
            branches.append(child.output.reshape(before.shape))
    scale = _parallel_scale(before, attention, branches[1:], record.get("output"), tolerance)
    if scale is None:
        raise _not_found(index, layout)
    return ResidualSpot(None, scale)


def _not_found(index: int, layout: Layout) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"layer {index} of {type(layout.decoder).__name__}: attention could not be found in the residual stream, so a "
        'signal that looks at this stream ("cosine") has nothing to measure; use an allocator that measures something '
        'else or nothing, such as "probe", "uniform" or fixed budgets'
    )


def _is_single(layer: nn.Module) -> bool:
    parameter = next(layer.parameters(), None)
    return parameter is None or parameter.dtype in (torch.float32, torch.float64)


def _parallel_scale(
    before: torch.Tensor,
    attention: torch.Tensor,
    others: list[torch.Tensor],
    output: torch.Tensor | None,
    tolerance: float,
) -> float | None:
    """``s`` in output = before + s * attention + t * other (the MLP) for some ``other``; None if no fit."""
    if output is None or output.numel() != before.numel():
        return None
    output = output.reshape(before.shape)
    moved = (output - before).flatten()
    for other in others:
        basis = torch.stack([attention.flatten(), other.flatten()], dim=1)
        solution = torch.linalg.lstsq(basis, moved[:, None]).solution
        if (basis @ solution - moved[:, None]).norm() <= tolerance * output.norm() and solution[0] > 0:
            return float(solution[0])
    return None
