"""Each prompt's cosine inside the engine, kept where the prompt's keys are kept.

::

    a step          attention of layer l changes x into x + a:  cos(x, x + a), one number a token    -> row l of `step`
    after it        step[l, token] -> kept[l, slot]          the slot of the token's key: block * size + offset
    prompt read     mean of kept[l, slots of its block table]           whoever wrote them: chunks, or another prompt

So chunks, preemption and prefix-cache hits need no accounting of their own: a block that is still there has its cosines
beside it. That costs four bytes a token and layer.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..errors import UnsupportedFeatureError

#: Observers by number: an operator of a compiled graph cannot be handed one.
_OBSERVERS: weakref.WeakValueDictionary[int, CosineObserver] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


@torch.library.custom_op("squeezeattention::note_cosine", mutates_args=("added",))
def note_cosine(added: torch.Tensor, before: torch.Tensor, observer: int, layer: int) -> None:
    """Note ``cos(before, before + added)`` of each token, both ``[T, hidden]``.

    ``added`` is said to be changed, and is not: a compiled graph would drop an operator that changes nothing.
    """
    x = before.float()
    y = (before + added).float()
    _OBSERVERS[observer].step[layer, : len(x)].copy_(torch.cosine_similarity(x, y, dim=-1))


@note_cosine.register_fake
def _(added: torch.Tensor, before: torch.Tensor, observer: int, layer: int) -> None:
    return None


class CosineObserver:
    """Cosines of one model's tokens. ``n_layers`` rows, and as many tokens as a step can have."""

    def __init__(self, n_layers: int, most_tokens: int, device: torch.device) -> None:
        self.number = next(_NUMBERS)
        self.step = torch.zeros(n_layers, most_tokens, device=device)
        self.kept: torch.Tensor | None = None
        _OBSERVERS[self.number] = self

    def attach(self, model: torch.nn.Module) -> None:
        """Look at the norm behind each layer's attention, which is given what attention adds and what it adds it to.

        Raises :class:`UnsupportedFeatureError` for models without such a norm in every layer.
        """
        found = dict(_norms(model))
        if sorted(found) != list(range(len(self.step))):
            missing = sorted(set(range(len(self.step))) - set(found))
            raise UnsupportedFeatureError(
                f"plans per prompt need a norm behind attention that adds to the residual stream; layers {missing} of "
                f"{type(model).__name__} have none that is known: serve it with one plan for all prompts"
            )
        for layer, norm in found.items():
            norm.register_forward_pre_hook(self._hook(layer, type(model).__name__))

    def _hook(self, layer: int, name: str) -> Any:
        def look(norm: torch.nn.Module, args: tuple[Any, ...]) -> None:
            if len(args) != 2 or args[1] is None:
                raise UnsupportedFeatureError(
                    f"plans per prompt are not known to work with {name}: the norm behind its attention does not add "
                    "to the residual stream; serve it with one plan for all prompts"
                )
            note_cosine(args[0], args[1], self.number, layer)

        return look

    def keep(self, layers: Sequence[int], slots: torch.Tensor, n_slots: int) -> None:
        """After a step: its tokens' cosines in ``layers``, which share ``slots [T]``."""
        if self.kept is None or self.kept.shape[1] != n_slots:
            self.kept = self.step.new_zeros(len(self.step), n_slots)
        rows = torch.tensor(layers, device=slots.device)
        self.kept[rows[:, None], slots[None]] = self.step[rows, : len(slots)]

    def means(self, layers: Sequence[int], slots: torch.Tensor) -> torch.Tensor:
        """``[len(layers)]``: the mean over a prompt whose tokens are in ``slots``."""
        if self.kept is None:
            raise RuntimeError("a prompt was read, but nothing was noted of it")
        return self.kept[torch.tensor(layers, device=slots.device)[:, None], slots[None]].mean(1)


def _norms(model: torch.nn.Module) -> Iterator[tuple[int, torch.nn.Module]]:
    """Layer and the norm that attention's output goes into, together with the residual stream."""
    for name, module in model.named_modules():
        if hasattr(module, "self_attn") and name.rpartition(".")[2].isdigit():
            norm = getattr(module, "pre_feedforward_layernorm", None) or getattr(
                module, "post_attention_layernorm", None
            )
            if norm is not None:
                yield int(name.rpartition(".")[2]), norm
