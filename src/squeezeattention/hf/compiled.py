"""Decode steps through ``torch.compile``: the decoder's forward as one graph, on a GPU as one CUDA graph.

Compiled is what the class defines, inside the hooks that open and close a step: everything that changes on the host
from step to step stays outside of the graph, which sees fixed buffers and positions in tensors. With a model that
cannot be traced whole a cache decodes as before, and a :class:`~squeezeattention.errors.CompileWarning` says why; with
``compile="strict"`` that is a :class:`~squeezeattention.errors.CompileError`.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..cache.layer import refuse_gradient
from ..cache.step import ACTIVE, TRACED, Step
from ..device import execution_device, out_of_memory
from ..errors import CompileError, CompileWarning
from .rows import few_rows_backend, is_few_rows, sum_of_rows

if TYPE_CHECKING:
    from ..cache.cache import SqueezeCache

#: What compiling ends with where a forward cannot be traced or compiled whole, or too often.
_REFUSALS = (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit)
_few_rows = torch.compile(sum_of_rows, fullgraph=True)


def compiled_forward(decoder: nn.Module, step: Step, given: dict[str, Any], before: Callable[..., Any] | None) -> Any:
    """One decode step of ``decoder``; ``before``: a forward that was put on this object."""
    cache = step.cache
    if before is not None:
        _give_up(decoder, cache, "another library has replaced its forward (accelerate does, to move weights)")
        return before(**given)
    if cache._uncompiled is None:
        try:
            with cache._attachment.plain_names():
                output = _compiled(decoder)(decoder, _steady(given), step)
        except _REFUSALS as error:  # nothing has run: compiling comes first
            if out_of_memory(error) or (error.__cause__ is not None and out_of_memory(error.__cause__)):
                raise
            _give_up(decoder, cache, str(error).strip() or type(error).__name__)
        else:
            ACTIVE.hidden = weakref.ref(output[0])
            if output[0].requires_grad:  # keys and values that have just been stored had a graph, too
                output[0].register_hook(refuse_gradient)
            return output
        finally:
            TRACED.step = None
    return type(decoder).forward(decoder, **given)


def compiled_head(head: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    """``head(input)``; on the CPU, for few rows that a compiled step gave, at the memory's speed."""
    if _is_of_compiled_step(input) and is_few_rows(input, head.weight):
        return _few_rows(input, head.weight, head.bias)
    return type(head).forward(head, input)


def _is_of_compiled_step(hidden: torch.Tensor) -> bool:
    """Whether it is (a view of) the hidden state that this thread's last compiled step gave, and no other cache's."""
    last = ACTIVE.hidden() if ACTIVE.hidden is not None else None
    return last is not None and last.untyped_storage().data_ptr() == hidden.untyped_storage().data_ptr()


def _steady(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments as tensors of the same layout at every step, without the mask that grows: where positions are
    given, the cache knows the rest."""
    steady = {
        name: value.clone(memory_format=torch.contiguous_format) if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
    }
    if isinstance(given.get("position_ids"), torch.Tensor):
        steady["attention_mask"] = None
    return steady


def _compiled(decoder: nn.Module) -> Callable[[nn.Module, dict[str, Any], Step], Any]:
    on_gpu = execution_device(decoder).type == "cuda"
    if on_gpu:
        torch.compiler.cudagraph_mark_step_begin()
    return _compiler("reduce-overhead" if on_gpu else None)


@functools.cache
def _compiler(mode: str | None) -> Callable[[nn.Module, dict[str, Any], Step], Any]:
    if mode is None:  # a processor
        return torch.compile(_forward, fullgraph=True, backend=few_rows_backend)
    return torch.compile(_forward, fullgraph=True, mode=mode)


def _forward(decoder: nn.Module, given: dict[str, Any], step: Step) -> Any:
    TRACED.step = step
    output = type(decoder).forward(decoder, **given)
    TRACED.step = None
    return output


def _give_up(decoder: nn.Module, cache: SqueezeCache, reason: str) -> None:
    """Say once for each cache that it decodes plain. Another one tries anew: its policy may be another one."""
    if cache._uncompiled is not None:
        return
    if cache.compile == "strict":
        raise CompileError(
            f'{type(decoder).__name__} cannot decode through torch.compile, which compile="strict" asks for: {reason}'
        )
    cache._uncompiled = reason
    warnings.warn(f"{type(decoder).__name__} decodes without torch.compile: {reason}", CompileWarning, stacklevel=2)
