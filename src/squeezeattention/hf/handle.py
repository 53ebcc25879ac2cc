"""``squeeze(model, ...)``: plain ``model.generate`` calls use a SqueezeCache until detached."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

from torch import nn

from ..cache.cache import SqueezeCache
from ..errors import CacheStateError
from ..plan import BudgetPlan
from .attachment import attach


class Handle:
    """What :func:`squeeze` returns: a context manager that can also be undone by :meth:`detach`."""

    def __init__(self, model: nn.Module, settings: dict[str, Any]) -> None:
        # A cache made now shows a mistake in the settings at once, not in the middle of a generation.
        first = SqueezeCache(model, **settings)
        attachment = attach(model)
        first.detach()
        if attachment.make_cache is not None:
            attachment.release()
            raise CacheStateError("this model is already squeezed; call detach() on the earlier handle first")
        self._attachment: Any = attachment
        self._model, self._settings = weakref.ref(model), settings
        self.cache: SqueezeCache | None = None
        """The cache of the latest ``generate`` call."""
        attachment.make_cache = self._make_cache

    def _make_cache(self) -> SqueezeCache:
        model = self._model()
        if model is None:
            raise CacheStateError("the model of this handle is gone")
        self.cache = SqueezeCache(model, **self._settings)
        return self.cache

    @property
    def plan(self) -> BudgetPlan | None:
        """The plan of the latest prompt; see :attr:`SqueezeCache.plan`."""
        return None if self.cache is None else self.cache.plan

    @property
    def plans(self) -> list[BudgetPlan]:
        """The plans of the latest prompt's rows."""
        return [] if self.cache is None else self.cache.plans

    def detach(self) -> None:
        """Leave the model as it was. Calling it again does nothing."""
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            attachment.make_cache = None
            attachment.release()
            self.cache, cache = None, self.cache
            if cache is not None:
                cache.detach()

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def squeeze(model: nn.Module, **settings: Any) -> Handle:
    """Make ``model.generate`` use a fresh :class:`SqueezeCache` for every call.

    ``settings`` are those of :class:`SqueezeCache` (``budget``, ``policy``, ``allocator``, ``p``, ...). Works with
    pipelines, streamers and harnesses, which call ``generate`` on the same model::

        with squeeze(model, budget=0.2, policy="streaming_llm") as squeezed:
            model.generate(**inputs, max_new_tokens=256)
            print(squeezed.plan)

    or without ``with``, undone by ``.detach()``. Calls that bring a cache of their own are left alone.
    """
    return Handle(model, settings)
