"""What a model looks like to this library: its decoder, its layers, their attention and windows."""

from __future__ import annotations

import inspect
import weakref
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import CacheStateError, UnsupportedModelError
from . import compat
from .falcon import FALCON_FAMILIES, check_falcon


@dataclass(frozen=True)
class Layout:
    """The parts of one model, held weakly: neither hooks nor caches keep a model alive."""

    decoder_ref: weakref.ref[nn.Module]
    layer_refs: tuple[weakref.ref[nn.Module], ...]
    attention_refs: tuple[weakref.ref[nn.Module], ...]
    windows: tuple[int | None, ...]
    """Native sliding window of each layer (tokens, the query's own included), ``None`` = full attention."""
    config: Any
    """The text decoder's config."""
    fingerprint: str
    """Short name of the architecture's shape; plans carry it."""

    @property
    def decoder(self) -> nn.Module:
        """The module that owns the list of layers and runs them."""
        return _alive(self.decoder_ref, "the model of this cache is gone")

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        return tuple(map(_part, self.layer_refs))

    @property
    def attentions(self) -> tuple[nn.Module, ...]:
        return tuple(map(_part, self.attention_refs))

    @property
    def n_layers(self) -> int:
        return len(self.layer_refs)


#: What to do when the layers are not those that a cache was made for.
LAYERS_CHANGED = (
    "a layer was replaced, removed or skipped after the cache was made. Detach the model's caches (cache.detach()), "
    "and make a new one when the model is as it is to be"
)


def _alive(reference: weakref.ref[nn.Module], gone: str) -> nn.Module:
    module = reference()
    if module is None:
        raise CacheStateError(gone)
    return module


def _part(reference: weakref.ref[nn.Module]) -> nn.Module:
    return _alive(reference, f"the model no longer has the layers that this cache knows: {LAYERS_CHANGED}")


def inspect_model(model: nn.Module) -> Layout:
    """Find the parts of a decoder-only transformers model; raises :class:`UnsupportedModelError`."""
    compat.check_version()
    name = type(model).__name__
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None or not hasattr(config, "get_text_config"):
        raise UnsupportedModelError(f"expected a transformers model, got {name}")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder model; only decoder-only models are supported")
    text = config.get_text_config(decoder=True)
    family = str(text.model_type)
    if getattr(text, "alibi", False) or getattr(text, "position_embedding_type", None) == "alibi":
        raise UnsupportedModelError(
            f"{name} uses ALiBi, whose bias depends on where a token is stored; ALiBi models are not supported"
        )
    windows = _windows(text, name)
    decoder, layers, attentions = _find_decoder(model, len(windows), name)
    if crossing := [index for index, attention in enumerate(attentions) if "Cross" in type(attention).__name__]:
        raise UnsupportedModelError(
            f"{name} has layers that attend to an image or another text instead of the tokens before "
            f"({', '.join(map(str, crossing))}); their keys and values are no cache of the text, not supported"
        )
    if getattr(text, "add_cross_attention", False) and any(hasattr(layer, "crossattention") for layer in layers):
        raise UnsupportedModelError(
            f"{name} was built to attend to an encoder as well (add_cross_attention), whose keys and values it keeps "
            "in a cache around the one that it is given; not supported. Without an encoder, build it without"
        )
    if all(getattr(attention, "is_causal", True) is False for attention in attentions):
        if getattr(text, "use_bidirectional_attention", False) and hasattr(model, "generate"):
            raise UnsupportedModelError(
                f"{name} attends to its prompt both ways (use_bidirectional_attention), an image and the text before "
                "an answer: a pattern that cannot be followed once tokens are evicted, not supported"
            )
        raise UnsupportedModelError(f"{name} is an encoder: its attention is not causal, so it has no cache to squeeze")
    if not {"input_ids", "inputs_embeds"} & set(inspect.signature(type(decoder).forward).parameters):
        raise UnsupportedModelError(
            f"{name} runs its layers in {type(decoder).__name__}, which is not given text, so it cannot be told what "
            "of it is a prompt; not supported"
        )
    if family in FALCON_FAMILIES:
        check_falcon(text, name)
    elif not compat.uses_interface(_pretrained(model, decoder)):
        raise UnsupportedModelError(
            f"{name} ({family}) computes attention itself instead of through transformers' AttentionInterface, "
            "so it cannot be carried exactly; supported families: `squeeze models`"
        )
    shapes = dict.fromkeys(kv_shape(text, layer) for layer in range(len(layers)))
    return Layout(
        decoder_ref=weakref.ref(decoder),
        layer_refs=tuple(map(weakref.ref, layers)),
        attention_refs=tuple(map(weakref.ref, attentions)),
        windows=windows,
        config=text,
        fingerprint=f"{family}-{len(layers)}x" + "+".join(f"{heads}x{width}" for heads, width in shapes),
    )


def kv_shape(text: Any, layer: int | None = None) -> tuple[int, int]:
    """KV heads and width of a head, as a text decoder's config names them; of one layer, where they differ."""
    own = getattr(text, "per_layer_config", None)
    if own is not None and layer is not None and layer < len(own):  # it may speak of an encoder's layers
        text = own[layer]
    heads: Any = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", 0)
    width = getattr(text, "head_dim", None) or text.hidden_size // max(1, text.num_attention_heads)
    return int(heads), int(width)


def widest_head(text: Any) -> int:
    """Numbers of the widest head of keys or values, as a text decoder's config names them."""
    # Where keys are made of latents (MLA) they have a part with and one without rotary embedding.
    latent = sum(getattr(text, name, None) or 0 for name in ("qk_nope_head_dim", "qk_rope_head_dim"))
    widths = (kv_shape(text, layer)[1] for layer in range(int(text.num_hidden_layers)))
    return max(latent, getattr(text, "v_head_dim", None) or 0, *widths)


def _pretrained(model: nn.Module, decoder: nn.Module) -> nn.Module:
    """The innermost transformers model with the decoder in it: others around it may have attention of other kinds."""
    around = [m for m in model.modules() if hasattr(type(m), "_can_set_attn_implementation") and _contains(m, decoder)]
    return around[-1] if around else decoder


def _contains(module: nn.Module, part: nn.Module) -> bool:
    return any(child is part for child in module.modules())


def _windows(config: Any, name: str) -> tuple[int | None, ...]:
    """Native window of each layer from the config; refuses layers that are not causal attention."""
    # Where a config is that of an encoder and a decoder, its layers are the encoder's.
    count = int(getattr(config, "decoder_layers", None) or config.num_hidden_layers)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    types = getattr(config, "layer_types", None)
    if types is None:
        types = ["full_attention" if window is None else "sliding_attention"] * count
    known = {"full_attention", "sliding_attention"}
    unknown = sorted(set(types) - known)
    if unknown:
        raise UnsupportedModelError(
            f"{name} has layers of type {', '.join(unknown)}; supported: {', '.join(sorted(known))}"
        )
    if getattr(config, "num_kv_shared_layers", 0):
        raise UnsupportedModelError(f"{name} shares one layer's keys and values with others; not supported")
    if "sliding_attention" in types and not isinstance(window, int):
        raise UnsupportedModelError(f"{name} has sliding layers, but its config gives no sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in types[:count])


def _find_decoder(model: nn.Module, count: int, name: str) -> tuple[nn.Module, list[nn.Module], list[nn.Module]]:
    """The module that owns a list of ``count`` layers with one attention module each."""
    for module in model.modules():
        for child in module.children():
            if not isinstance(child, nn.ModuleList) or len(child) != count:
                continue
            attentions = [_attention_of(layer) for layer in child]
            found = [attention for attention in attentions if attention is not None]
            if len(found) == count:
                return module, list(child), found
    raise UnsupportedModelError(
        f"no list of {count} decoder layers with one attention module each (one that knows its layer_idx) was "
        f"found in {name}; see `squeeze models` for the supported families"
    )


def _attention_of(layer: nn.Module) -> nn.Module | None:
    """The module of a layer that owns its ``layer_idx`` and talks to the cache."""
    for module in layer.modules():
        if "Attention" in type(module).__name__ and isinstance(getattr(module, "layer_idx", None), int):
            return module
    return None
