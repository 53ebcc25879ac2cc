"""Modules that the user has compiled run as they were written while the model is attached to.

What a tracer would see then is hooks that come and go and lists that change from step to step: it would trace again at
each, refuse to (``fullgraph=True``), or keep guards on hooks that are gone. ``compile=True`` is the way to compile
steps with a cache of ours.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .untouched import put

#: What ``torch.compile`` of a function calls the function.
_ORIGINAL = "_torchdynamo_orig_callable"
#: Where modules keep what was compiled of them: ``module.forward = torch.compile(...)`` and ``module.compile()``.
_PLACES = ("forward", "_compiled_call_impl")


def bypass_compiled(model: nn.Module) -> list[Callable[[], None]]:
    """Put what was compiled in ``model`` in its compiled form's place, where it is not yet; returns what undoes it."""
    undo = []
    for module in model.modules():
        for place in _PLACES:
            plain = getattr(vars(module).get(place), _ORIGINAL, None)
            if plain is not None:
                undo.append(put(module, place, plain))
    return undo
