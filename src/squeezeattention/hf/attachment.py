"""What is put on a model while a SqueezeCache or ``squeeze()`` uses it, and taken off again.

One attachment per model, shared by all its caches and counted: the last one to go restores the model. It

* points the configs at an attention implementation that serves our caches (see dispatch.py),
* hooks the decoder's forward, to know each pass before its first layer runs,
* wraps ``_prefill`` and ``_prepare_cache_for_generation`` on the instance, so that ``generate`` marks where a
  prompt ends and (under ``squeeze()``) makes the cache.

Any other cache on an attached model takes the model's own path, bit for bit.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from ..cache.step import ACTIVE, Step
from ..errors import CacheStateError, UnsupportedFeatureError
from . import compat
from .dispatch import implementation_name
from .falcon import FALCON_FAMILIES
from .falcon import forward as falcon_forward
from .shadow import scrub, shadow
from .layout import Layout, inspect_model
from .observe import observe_hidden
from .residual import ResidualSpot, find_spots

if TYPE_CHECKING:
    from ..cache.cache import SqueezeCache

_LOCK = threading.RLock()
_ATTACHMENTS: weakref.WeakKeyDictionary[nn.Module, Attachment] = weakref.WeakKeyDictionary()
_CACHE_NAMES = ("past_key_values", "layer_past", "past_key_value")


def attach(model: nn.Module) -> Attachment:
    """The model's attachment with one more user; undo with :meth:`Attachment.release`."""
    with _LOCK:
        attachment = _ATTACHMENTS.get(model)
        if attachment is None:
            attachment = Attachment(model, inspect_model(model))
            _ATTACHMENTS[model] = attachment
        attachment.users += 1
        if attachment.users == 1:
            try:
                attachment.install()
            except BaseException:
                attachment.release()
                raise
        return attachment


class Attachment:
    """See the module's docstring. Holds the model weakly: hooks must not keep it alive."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self._model = weakref.ref(model)
        self._layout = weakref.WeakKeyDictionary({model: layout})
        self.users = 0
        self._undo: list[Callable[[], None]] = []
        self._spots: tuple[ResidualSpot, ...] | None = None
        #: Makes the cache of a ``generate`` call that was given none; set by ``squeeze()``.
        self.make_cache: Callable[[], SqueezeCache] | None = None

    @property
    def model(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise CacheStateError("the model of this cache is gone")
        return model

    @property
    def layout(self) -> Layout:
        return self._layout[self.model]

    @property
    def spots(self) -> tuple[ResidualSpot, ...]:
        """Where each layer's attention joins the residual stream (one probe per model)."""
        if self._spots is None:
            step, ACTIVE.step = ACTIVE.step, None
            try:
                self._spots = find_spots(self.model, self.layout)
            finally:
                ACTIVE.step = step
        return self._spots

    def release(self) -> None:
        """One user less; the last one restores the model."""
        with _LOCK:
            self.users -= 1
            if self.users > 0:
                return
            while self._undo:
                self._undo.pop()()
            model = self._model()
            if model is not None and _ATTACHMENTS.get(model) is self:
                del _ATTACHMENTS[model]

    # ------------------------------------------------------------- installing

    def install(self) -> None:
        model, layout = self.model, self.layout
        scrub(model, (_begin_step, _end_step))
        if layout.config.model_type in FALCON_FAMILIES:
            self._undo += [shadow(module, "forward", falcon_forward) for module in layout.attentions]
        else:
            self._switch_implementation(model)
        before = layout.decoder.register_forward_pre_hook(_begin_step, with_kwargs=True)
        after = layout.decoder.register_forward_hook(_end_step, always_call=True)
        self._undo += [before.remove, after.remove]
        for owner in model.modules():
            if hasattr(type(owner), "_prepare_cache_for_generation"):
                self._undo.append(shadow(owner, "_prepare_cache_for_generation", _prepare_cache))
                self._undo.append(shadow(owner, "_prefill", _prefill))

    def _switch_implementation(self, model: nn.Module) -> None:
        configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
        configs = {key: c for key, c in configs.items() if hasattr(c, "_attn_implementation_internal")}
        names = {key: implementation_name(compat.implementation(c)) for key, c in configs.items()}
        for key, config in configs.items():
            own = compat.raw_implementation(config)
            compat.set_implementation(config, names[key])
            self._undo.append(functools.partial(compat.set_implementation, config, own))


# ------------------------------------------------------------------- forward


def _begin_step(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before the decoder runs: if its cache is ours, open a step."""
    from ..cache.cache import SqueezeCache

    cache = next((kwargs[n] for n in _CACHE_NAMES if isinstance(kwargs.get(n), SqueezeCache)), None)
    bound = kwargs
    if cache is None:
        if not any(isinstance(arg, SqueezeCache) for arg in args):
            return
        names = list(inspect.signature(decoder.forward).parameters)
        bound = {**dict(zip(names, args, strict=False)), **kwargs}
        cache = next(arg for arg in args if isinstance(arg, SqueezeCache))
    elif args:
        names = list(inspect.signature(decoder.forward).parameters)
        bound = {**dict(zip(names, args, strict=False)), **kwargs}
    if ACTIVE.step is not None:  # a forward that died before its hook ran
        _close(ACTIVE.step, failed=True)
    step = cache._begin(decoder, bound)
    if step.observe and cache.signal.wants_hidden:
        attachment = cache._attachment
        step.handles = observe_hidden(step, cache.signal, attachment.layout, attachment.spots)
    ACTIVE.step = step


def _end_step(decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    step = ACTIVE.step
    if step is not None:
        _close(step, failed=output is None)


def _close(step: Step, *, failed: bool) -> None:
    ACTIVE.step = None
    for handle in step.handles:
        handle.remove()
    step.cache._end(step, failed=failed)


# ------------------------------------------------------------------ generate


def _prepare_cache(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Check what ``generate`` is about to do; under ``squeeze()``, give it a cache."""
    from ..cache.cache import SqueezeCache

    original = type(model)._prepare_cache_for_generation
    arguments = _bound(original, model, args, kwargs)
    config, model_kwargs = arguments["generation_config"], arguments["model_kwargs"]
    cache, make = model_kwargs.get("past_key_values"), _cache_maker(model)
    if isinstance(cache, SqueezeCache) or (cache is None and make is not None):
        _refuse_unsupported(config, arguments.get("generation_mode"))
    if cache is None and make is not None:
        cache = model_kwargs["past_key_values"] = make()
    if isinstance(cache, SqueezeCache):
        cache._expect(int(arguments["max_cache_length"]) + 1)
    return original(model, *args, **kwargs)


def _prefill(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The whole prompt of a ``generate`` call, in however many chunks, is one prompt: cut it at its end."""
    from ..cache.cache import SqueezeCache

    original = type(model)._prefill
    arguments = _bound(original, model, args, kwargs)
    cache = arguments["model_kwargs"].get("past_key_values")
    if not isinstance(cache, SqueezeCache):
        return original(model, *args, **kwargs)
    cache._check_new_prompt(arguments["input_ids"], arguments["model_kwargs"])
    with cache.prefilling():
        return original(model, *args, **kwargs)


def _bound(function: Callable[..., Any], model: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    return dict(inspect.signature(function).bind(model, *args, **kwargs).arguments)


def _cache_maker(model: nn.Module) -> Callable[[], SqueezeCache] | None:
    """What ``squeeze()`` set for the model that ``generate`` was called on, or one that contains it."""
    for attached, attachment in list(_ATTACHMENTS.items()):
        if attachment.make_cache is not None and (attached is model or model in attached.modules()):
            return attachment.make_cache
    return None


def _refuse_unsupported(config: Any, mode: Any) -> None:
    """Options of ``generate`` that cannot work with an evicting cache."""
    if "assisted" in str(getattr(mode, "value", mode)):
        raise UnsupportedFeatureError(
            "assisted and prompt-lookup decoding roll the cache back, which an evicting cache cannot do; "
            "use greedy, sampling or beam search"
        )
    if config.cache_implementation is not None:
        raise UnsupportedFeatureError(
            f"cache_implementation={config.cache_implementation!r} asks for another cache; a SqueezeCache "
            "replaces it: leave cache_implementation unset"
        )
    if config.use_cache is False:
        raise UnsupportedFeatureError("use_cache=False leaves nothing to squeeze; set use_cache=True")
