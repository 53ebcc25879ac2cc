"""Classifier-free guidance: the text without the prompt, which ``generate`` reads beside the other, is squeezed too.

The processor of logits that reads it makes a cache of the model's own, unless it has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor as Guidance

from .arguments import CACHE_ARGUMENTS

if TYPE_CHECKING:
    from ..cache.cache import SqueezeCache


def squeeze_guidance(model: nn.Module, processors: Iterable[Any], cache: SqueezeCache, new_tokens: int | None) -> None:
    """Give the unconditional branches of ``model`` caches like ``cache``, for an answer of so many tokens at most."""
    for processor in processors:
        if not isinstance(processor, Guidance) or processor.model is not model:
            continue
        branch = processor.unconditional_context
        name = next((name for name in CACHE_ARGUMENTS if name in branch), None)
        if name is None or branch[name] is not None or not branch["use_cache"]:
            continue
        branch[name] = cache._like()
        if new_tokens is not None:
            prompt = branch["input_ids"]  # none: the last token of the other prompt
            branch[name]._expect((1 if prompt is None else prompt.shape[1]) + new_tokens)
