"""What ``generate`` is told while caches of ours are on a model: methods that stand in front of the model's own.

``generate``: names the cache as this release of transformers does, and sees to it that the model really read it. (In
``model.generate(..., past_key_values=SqueezeCache(model))`` the method is looked up before the cache is there, so this
one is not called; a cache that goes unread is then found at the prompt's end.)
``_prepare_cache_for_generation``: refuses what cannot work; under ``squeeze()``, makes the cache.
``_get_logits_processor``: guidance, which reads a second text, squeezes that as well.
``init_continuous_batching``: refused.
``_prefill``: the whole prompt, in however many chunks, is one prompt, and it is cut at its end.
``prepare_inputs_for_generation``: some models throw their cache away to read the text anew (long-context Phi-3, where
its rotary scaling switches); what holds nothing yet stays, and what has evicted cannot be read anew.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from ..errors import CacheStateError, UnsupportedFeatureError
from . import compat
from .arguments import CACHE_ARGUMENTS, cache_of
from .guidance import squeeze_guidance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..cache.cache import SqueezeCache


_INPUTS = "prepare_inputs_for_generation"


@dataclass
class _Call:
    """A ``generate`` call under way: its caches of ours, and how many columns each had seen before."""

    seen: list[tuple[SqueezeCache, int]] = field(default_factory=list)
    hands_on: bool = False
    """A model inside this one generates, with a cache of ours (BLIP-2's language model)."""

    def watch(self, cache: SqueezeCache) -> None:
        if all(known is not cache for known, _ in self.seen):
            self.seen.append((cache, cache.get_seq_length()))


class _Calls(threading.local):
    """This thread's ``generate`` calls, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[_Call] = []

    @contextmanager
    def enter(self) -> Iterator[_Call]:
        call = _Call()
        self.stack.append(call)
        try:
            yield call
        finally:
            self.stack.remove(call)

    def watch(self, cache: SqueezeCache) -> None:
        if self.stack:
            self.stack[-1].watch(cache)
            for around in self.stack[:-1]:
                around.hands_on = True


_CALLS = _Calls()


def generate(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``generate``, and then a look whether the caches that it should have read were read."""
    from ..cache.cache import SqueezeCache
    from .attachment import cache_maker

    kwargs = _renamed(kwargs)
    squeezed, own = cache_maker(model) is not None, _class_method(model, "generate")
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Cache)]
    with _CALLS.enter() as call:
        for cache in given:
            if isinstance(cache, SqueezeCache):
                call.watch(cache)
        output = own(model, *args, **kwargs)
    if squeezed and not given and not call.seen and not call.hands_on:
        raise CacheStateError(
            f"{type(model).__name__}.generate never asked for a cache, so squeeze() did nothing: transformers "
            f"{compat.release()} may not be supported, or the model makes its cache by itself"
        )
    text = getattr(output, "sequences", output)
    text = text if isinstance(text, torch.Tensor) and text.ndim == 2 else None
    columns = 0 if text is None else text.shape[1] - _never_read(args, kwargs)
    for cache, before in call.seen:
        _check_read(model, cache, before, columns)
        if text is not None and kwargs.get("inputs_embeds") is None:
            cache._note_text(text)
    return output


def _never_read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Columns of ids in front of what ``generate`` returns that the model was given other tokens for, as embeddings.

    Ids beside embeddings are only for what looks at ids (penalties, say), and may be more or fewer.
    """
    embeddings = kwargs.get("inputs_embeds")
    if not isinstance(embeddings, torch.Tensor):
        return 0
    ids = next((one for one in (*args[:1], kwargs.get("inputs"), kwargs.get("input_ids")) if one is not None), None)
    return (0 if ids is None else ids.shape[1]) - embeddings.shape[1]


def _check_read(model: nn.Module, cache: SqueezeCache, before: int, columns: int = 0) -> None:
    """Raise if the model did not read the cache that it was given, or left it before a text of ``columns`` ended."""
    seen = cache.get_seq_length()
    if seen > before and seen >= columns - 1:  # the last token was never fed
        return
    what = "never read it" if seen <= before else f"stopped reading it after {seen} of {columns} tokens"
    raise CacheStateError(
        f"a SqueezeCache was given to {type(model).__name__}.generate, which {what}: the text came from another cache, "
        f"and nothing was saved. The model may throw caches away, another library may have put one of its own in place "
        f"(PEFT's prefix tuning does), or transformers {compat.release()} may not be supported"
    )


def _renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``generate``, with our cache under the name that this release knows."""
    from ..cache.cache import SqueezeCache

    name = compat.generate_cache_name()
    for other in compat.CACHE_NAMES:
        if other != name and name not in kwargs and isinstance(kwargs.get(other), SqueezeCache):
            kwargs = {**{key: value for key, value in kwargs.items() if key != other}, name: kwargs[other]}
    return kwargs


def prepare_cache(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Check what ``generate`` is about to do; under ``squeeze()``, give it a cache."""
    from ..cache.cache import SqueezeCache
    from .attachment import cache_maker

    make, original = cache_maker(model), _class_method(model, "_prepare_cache_for_generation")
    arguments = _bound(original, model, args, kwargs)
    config, model_kwargs, name = arguments["generation_config"], arguments["model_kwargs"], compat.generate_cache_name()
    cache = model_kwargs.get(name)
    if isinstance(cache, SqueezeCache) or (cache is None and make is not None):
        _refuse_unsupported(config, arguments.get("generation_mode"))
    if cache is None and make is not None:
        cache = model_kwargs[name] = make()
    if isinstance(cache, SqueezeCache):
        _CALLS.watch(cache)
        cache._expect(int(arguments["max_cache_length"]) + 1)
    return original(model, *args, **kwargs)


def logits_processor(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What changes the logits, some of which read a text of their own."""
    original = _class_method(model, "_get_logits_processor")
    processors, arguments = original(model, *args, **kwargs), _bound(original, model, args, kwargs)
    cache = cache_of(arguments.get("model_kwargs") or {})
    if cache is not None:
        most, length = arguments["generation_config"].max_length, arguments.get("input_ids_seq_length")
        squeeze_guidance(model, processors, cache, None if most is None or length is None else most - length)
    return processors


def prefill(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The prompt of a ``generate`` call."""
    from ..cache.cache import SqueezeCache

    original = _class_method(model, "_prefill")
    arguments = _bound(original, model, args, kwargs)
    model_kwargs, config = arguments["model_kwargs"], arguments["generation_config"]
    cache = model_kwargs.get(compat.generate_cache_name())
    if not isinstance(cache, SqueezeCache):
        return original(model, *args, **kwargs)
    total, before = cache._check_new_prompt(arguments["input_ids"], model_kwargs, config), cache.get_seq_length()
    with cache.prefilling(total):
        output = original(model, *args, **kwargs)
    _check_read(model, cache, before)
    return output


def prepare_inputs_of(owner: nn.Module) -> Callable[..., Any]:
    """What stands in front of ``owner.prepare_inputs_for_generation``; ``generate`` reads its signature."""
    before: Callable[..., Any] | None = vars(owner).get(_INPUTS)

    def prepare_inputs(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own = _class_method(model, _INPUTS).__get__(model) if before is None else before
        inputs, cache = own(*args, **kwargs), cache_of(kwargs)
        if cache is not None and all(inputs.get(name) is None for name in CACHE_ARGUMENTS):
            _keep_cache(model, cache, inputs, next(name for name in CACHE_ARGUMENTS if kwargs.get(name) is cache))
        return inputs

    prepare_inputs.__signature__ = inspect.signature(_class_method(owner, _INPUTS))  # type: ignore[attr-defined]
    return prepare_inputs


def _keep_cache(model: nn.Module, cache: SqueezeCache, inputs: dict[str, Any], name: str) -> None:
    """A model has left out its cache from the inputs of its next forward, which has then the whole text."""
    if inputs.get("use_cache") is False:
        return  # _check_read will say it
    seen = cache.get_seq_length()
    if seen == 0:
        inputs[name] = cache
        return
    raise CacheStateError(
        f"{type(model).__name__} stopped reading the SqueezeCache that it was given after {seen} tokens, to read the "
        "whole text anew (long-context Phi models do, where their rotary scaling switches from short to long): what "
        "was evicted cannot be read again. Prompts beyond that length are carried, and so are texts that end before "
        "it; to cross it, use the model's own cache"
    )


def refuse_continuous_batching(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``generate_batch`` and its managers have a paged cache of their own, and switch attention over to it."""
    raise UnsupportedFeatureError(
        "continuous batching (generate_batch, continuous_batching_context_manager, ...) keeps a paged cache of its "
        "own, which cannot be squeezed: call generate with a batch, or detach the model's SqueezeCaches and squeeze() "
        "handles first"
    )


def _class_method(model: nn.Module, name: str) -> Callable[..., Any]:
    """The method that ours stands in front of."""
    found: Callable[..., Any] = getattr(type(model), name)
    return found


def _bound(function: Callable[..., Any], model: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    return dict(inspect.signature(function).bind(model, *args, **kwargs).arguments)


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


_METHODS = {
    "generate": generate, "_prepare_cache_for_generation": prepare_cache, "_get_logits_processor": logits_processor,
    "_prefill": prefill, "init_continuous_batching": refuse_continuous_batching,
}  # fmt: skip


def front_methods(owner: nn.Module) -> dict[str, Callable[..., Any]]:
    """What stands in front of a model's own methods, by name."""
    known = {name: method for name, method in _METHODS.items() if hasattr(type(owner), name)}
    return {**known, _INPUTS: prepare_inputs_of(owner)}
