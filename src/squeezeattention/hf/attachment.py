"""What is put on a model while a SqueezeCache or ``squeeze()`` uses it, and taken off again.

One attachment per model, shared by all its caches and counted: the last one to go restores the model. It

* points the configs at an attention implementation that serves our caches (see dispatch.py),
* hooks the decoder's forward, to know each pass before its first layer runs,
* stands in front of ``generate`` and two methods that it calls, on the instance (see generation.py), so that a
  prompt's end is known and, under ``squeeze()``, a cache is made.

Any other cache on an attached model takes the model's own path, bit for bit.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from ..cache.step import ACTIVE, FORWARDS, Step
from ..errors import CacheStateError
from .arguments import by_name, cache_of, refuse_unsupported
from .bypass import bypass_compiled
from .falcon import FALCON_FAMILIES
from .falcon import forward as falcon_forward
from .front import put_before_head, put_in_front
from .generation import front_methods
from .layout import Layout, inspect_model
from .masks import padding_of
from .observe import observe_hidden
from .residual import ResidualSpot, find_spots
from .shadow import scrub, shadow
from .split import is_split
from .switch import Switch, switch_implementation
from .untouched import hooked
from .windows import windows_of

if TYPE_CHECKING:
    from ..cache.cache import SqueezeCache

LayerRefs = tuple[weakref.ref[nn.Module], ...]

_LOCK = threading.RLock()
_ATTACHMENTS: weakref.WeakKeyDictionary[nn.Module, Attachment] = weakref.WeakKeyDictionary()  # by decoder
#: By decoder: its layers when it was looked at, and what was found in them.
_SPOTS: weakref.WeakKeyDictionary[nn.Module, tuple[LayerRefs, tuple[ResidualSpot, ...]]] = weakref.WeakKeyDictionary()


def attach(model: nn.Module) -> Attachment:
    """The attachment of the model's decoder with one more user; undo with :meth:`Attachment.release`."""
    layout = inspect_model(model)
    with _LOCK:
        attachment = _ATTACHMENTS.get(layout.decoder)
        if attachment is None:
            attachment = _ATTACHMENTS[layout.decoder] = Attachment(model, layout)
        attachment.users += 1
        try:
            attachment.install(model)
        except BaseException:
            attachment.release()
            raise
        return attachment


class Attachment:
    """See the module's docstring. Holds modules weakly: neither hooks nor caches keep a model alive."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self._model = weakref.ref(model)
        self.layout = layout
        self.users = 0
        self.open_steps: list[Step] = []
        self._switches: list[Switch] = []
        self._shadowed: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._undo: list[Callable[[], None]] = []
        self._in_front = False
        #: Makes the cache of a ``generate`` call that was given none; set by ``squeeze()``.
        self.make_cache: Callable[[], SqueezeCache] | None = None

    @property
    def model(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise CacheStateError("the model of this cache is gone")
        return model

    @property
    def spots(self) -> tuple[ResidualSpot, ...]:
        """Where each layer's attention joins the residual stream (one probe in the life of a model's layers)."""
        decoder, layers = self.layout.decoder, self.layout.layer_refs
        with _LOCK:
            known = _SPOTS.get(decoder)
            if known is None or known[0] != layers:
                step, ACTIVE.step = ACTIVE.step, None
                try:
                    known = _SPOTS[decoder] = layers, find_spots(self.model, self.layout)
                finally:
                    ACTIVE.step = step
            return known[1]

    def stand_in_front(self) -> None:
        """Let caches have long forwards in pieces or decode steps compiled; stays until the last user goes."""
        with _LOCK:
            if not self._in_front:
                self._in_front = True
                self._undo.append(put_in_front(self.layout.decoder))
                if (undo := put_before_head(self.model)) is not None:
                    self._undo.append(undo)

    def check(self) -> None:
        """Before a step: if the user has set another attention implementation meanwhile, wrap that one."""
        for switch in self._switches:
            switch.renew()

    @contextmanager
    def plain_names(self) -> Iterator[None]:
        """For a forward that a compiler sees: see :meth:`Switch.plain`."""
        with ExitStack() as stack:
            for switch in self._switches:
                stack.enter_context(switch.plain())
            yield

    def release(self) -> None:
        """One user less; the last one restores the model."""
        with _LOCK:
            self.users -= 1
            if self.users > 0:
                return
            for step in list(self.open_steps):  # a forward that was interrupted
                close_step(step, failed=True)
            while self._undo:
                self._undo.pop()()
            self._in_front = False
            for switch in self._switches:
                switch.release()
            self._switches.clear()
            decoder = self.layout.decoder_ref()
            if decoder is not None:
                FORWARDS.leave(decoder)
                if _ATTACHMENTS.get(decoder) is self:
                    del _ATTACHMENTS[decoder]

    def install(self, model: nn.Module) -> None:
        """Put everything in place; what is there already stays as it is."""
        layout, begun = self.layout, bool(self._undo)
        if not begun:
            scrub(model, (_begin_step, _end_step, _begin_around, _end_around), set(_ATTACHMENTS) - {layout.decoder})
        self._undo += bypass_compiled(model)
        if not begun:
            if layout.config.model_type in FALCON_FAMILIES:
                self._undo += [shadow(module, "forward", falcon_forward) for module in layout.attentions]
            else:
                self._switches = switch_implementation(model)
            before = layout.decoder.register_forward_pre_hook(_begin_step, with_kwargs=True)
            after = layout.decoder.register_forward_hook(_end_step, always_call=True)
            self._undo += [hooked(layout.decoder, handle) for handle in (before, after)]
            for around in (m for m in model.modules() if m is not layout.decoder and layout.decoder in m.modules()):
                before = around.register_forward_pre_hook(_begin_around, with_kwargs=True)
                after = around.register_forward_hook(_end_around, always_call=True)
                self._undo += [hooked(around, handle) for handle in (before, after)]
            self.layout = replace(layout, windows=windows_of(layout))
        for owner in model.modules():
            if hasattr(type(owner), "_prepare_cache_for_generation") and owner not in self._shadowed:
                self._undo += [shadow(owner, name, method) for name, method in front_methods(owner).items()]
                self._shadowed.add(owner)


# ------------------------------------------------------------------- forward


def _begin_around(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a module runs that the decoder is in: some prepare masks for it, which must be for our cache then, and
    others (the encoder of images) are no part of a step, also where one was interrupted."""
    _close_inside(module)
    FORWARDS.enter(module, None)
    cache = cache_of(by_name(module, args, kwargs))
    ACTIVE.around, ACTIVE.asks = None if cache is None else weakref.ref(cache), False


def _end_around(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    _close_inside(module)
    ACTIVE.around, ACTIVE.asks = None, False


def _close_inside(module: nn.Module) -> None:
    """Forget a module's forward, of which steps are left that were interrupted (Ctrl-C) and never reached their end."""
    for step in FORWARDS.leave(module):
        close_step(step, failed=True)


def _begin_step(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before the decoder runs: if its cache is ours, open a step."""
    ACTIVE.around, ACTIVE.asks = None, False
    _close_inside(decoder)
    given = by_name(decoder, args, kwargs)
    cache = cache_of(given)
    if cache is None:  # what runs inside a layer of another model is none of that one's business
        FORWARDS.enter(decoder, None)
        return None
    mask = given.get("attention_mask")
    if (padding := padding_of(mask)) is not mask:
        given = {**given, "attention_mask": padding}
    changed = None if padding is mask else ((), given)
    if is_split(cache, given):
        return changed  # each of its pieces has a step
    refuse_unsupported(decoder, given)
    attachment = cache._attachment
    attachment.check()
    spots = attachment.spots if cache.observes_hidden else ()
    step = cache._begin(decoder, given)
    attachment.open_steps.append(step)
    if step.observe and spots:
        step.handles = observe_hidden(step, cache.signal, attachment.layout, spots)
    FORWARDS.enter(decoder, step)
    return changed


def _end_step(decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """After the decoder has run, or failed; what is still open inside it was interrupted."""
    for step in FORWARDS.leave(decoder):
        own = step.cache._attachment.layout.decoder_ref() is decoder
        close_step(step, failed=output is None or not own)


def close_step(step: Step, *, failed: bool) -> None:
    """A forward pass is over, one way or the other."""
    if ACTIVE.step is step:
        ACTIVE.step = None
    for handle in step.handles:
        handle.remove()
    if step in step.cache._attachment.open_steps:
        step.cache._attachment.open_steps.remove(step)
        step.cache._end(step, failed=failed)


def cache_maker(model: nn.Module) -> Callable[[], SqueezeCache] | None:
    """What ``squeeze()`` set for the decoder inside the model that ``generate`` was called on."""
    for decoder, attachment in list(_ATTACHMENTS.items()):
        if attachment.make_cache is not None and any(module is decoder for module in model.modules()):
            return attachment.make_cache
    return None
