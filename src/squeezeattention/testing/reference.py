"""What the cache must compute, written so that it can be read in one go and trusted.

No cache at all: every token is computed by one forward over the whole text so far, in float64, with eager attention
and an explicit keep-mask for each layer, head and query. Rows are computed alone and without padding. Slow on
purpose; it knows nothing of the cache's code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch


class NaiveReference:
    """One row of text under one policy and one list of budgets.

    Args:
        model: a transformers model; a float64 eager copy of it is used.
        policy: "sliding_window", "streaming_llm" (4 sinks) or "h2o".
        windows: native window of each layer or ``None``.
        kv_heads: heads that the cache stores.
    """

    def __init__(self, model: Any, policy: str, windows: Sequence[int | None], kv_heads: int) -> None:
        self.model = copy.deepcopy(model).double()
        for module in self.model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation_internal = "eager"
                module.config._experts_implementation_internal = "eager"
        self.policy, self.windows, self.kv_heads = policy, list(windows), kv_heads
        self.n_layers = len(self.windows)
        self.tokens: list[int] = []
        # masks[layer][head, query, position]: 0 where the query may see the position, "minus infinity" elsewhere
        self.masks = [torch.empty(kv_heads, 0, 0, dtype=torch.float64) for _ in self.windows]
        # kept[layer][head] = set of positions held; mass[layer][head][position] = attention received
        self.kept: list[list[set[int]]] = [[set() for _ in range(kv_heads)] for _ in self.windows]
        self.mass: list[list[dict[int, float]]] = [[{} for _ in range(kv_heads)] for _ in self.windows]
        self.budgets: list[int] = []
        self._lazy = False
        self._hook()

    def _hook(self) -> None:
        self._weights: dict[int, torch.Tensor] = {}
        for module in self.model.modules():
            index = getattr(module, "layer_idx", None)
            if "Attention" in type(module).__name__ and isinstance(index, int):
                module.register_forward_pre_hook(self._give_mask, with_kwargs=True)
                module.register_forward_hook(self._take_weights)

    def _give_mask(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        length = len(self.tokens)
        mask = self.masks[module.layer_idx][:, :length, :length]
        group = self.model.config.num_attention_heads // self.kv_heads
        return args, {**kwargs, "attention_mask": mask.repeat_interleave(group, dim=0)[None]}

    def _show(self, layer: int, head: int, query: int, positions: set[int]) -> None:
        """Let a query see these positions (inside its native window) and no others."""
        if query >= self.masks[layer].shape[1]:
            size, old = 2 * query + 64, self.masks[layer]
            self.masks[layer] = torch.full(
                (self.kv_heads, size, size), torch.finfo(torch.float64).min, dtype=torch.float64
            )
            self.masks[layer][:, : old.shape[1], : old.shape[2]] = old
        self.masks[layer][head, query, sorted(self._in_window(layer, positions, query))] = 0.0

    def _take_weights(self, module: Any, args: Any, output: Any) -> None:
        weights = output[1]
        self._weights[module.layer_idx] = weights[0].unflatten(0, (self.kv_heads, -1)).mean(1)

    def _forward(self, new: int) -> torch.Tensor:
        """Run over everything; count the attention of the last ``new`` queries; their logits [new, V]."""
        # Only H2O needs to know each step's attention before the next; the others may run it all at the end.
        if self.policy != "h2o" and self._lazy:
            return torch.empty(new, 0)
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([self.tokens]), use_cache=False).logits[0]
        for layer in range(self.n_layers):
            for head in range(self.kv_heads):
                received = self._weights[layer][head, -new:].sum(0).tolist()
                mass = self.mass[layer][head]
                for position in self.kept[layer][head]:
                    mass[position] = mass.get(position, 0.0) + received[position]
        return logits[-new:]

    def _in_window(self, layer: int, positions: set[int], query: int) -> set[int]:
        window = self.windows[layer]
        return {p for p in positions if window is None or p > query - window}

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        """A prompt or a further turn: each token sees what is kept and the new tokens before it."""
        first = len(self.tokens)
        self.tokens += list(tokens)
        for layer in range(self.n_layers):
            for head in range(self.kv_heads):
                for query in range(first, len(self.tokens)):
                    self._show(layer, head, query, self.kept[layer][head] | set(range(first, query + 1)))
                self.kept[layer][head] |= set(range(first, len(self.tokens)))
        return self._forward(len(tokens))

    def cut(self, budgets: Sequence[int]) -> None:
        """The end of a prompt: every layer to its budget."""
        self.budgets = list(budgets)
        newest = len(self.tokens) - 1
        for layer, budget in enumerate(budgets):
            for head in range(self.kv_heads):
                self.kept[layer][head] = self._in_window(layer, self.kept[layer][head], newest)
                self.kept[layer][head] = self._choose(layer, head, budget, newest)

    def step(self, token: int) -> torch.Tensor:
        """One generated token: it is taken in (evicting), then attends. Its logits [V]."""
        query = len(self.tokens)
        self.tokens.append(token)
        for layer, budget in enumerate(self.budgets):
            for head in range(self.kv_heads):
                self.kept[layer][head].add(query)
                self.kept[layer][head] = self._choose(layer, head, budget, query)
                self._show(layer, head, query, self.kept[layer][head])
        return self._forward(1)[0]

    def run(self, prompt: Sequence[int], budgets: Sequence[int], generated: Sequence[int]) -> torch.Tensor:
        """A whole story: prompt, cut, then ``generated`` tokens one by one. Logits of every token [T, V]."""
        self._lazy = True
        logits = [self.read(prompt)]
        self.cut(budgets)
        logits += [self.step(token)[None] for token in generated]
        self._lazy = False
        return torch.cat(logits) if self.policy == "h2o" else self._forward(len(self.tokens))

    def _choose(self, layer: int, head: int, budget: int, newest: int) -> set[int]:
        """The tokens that stay of those held, ``newest`` being the youngest."""
        held = self.kept[layer][head]
        window = self.windows[layer]
        if window is not None:
            budget = min(budget, window)
        if len(held) <= budget:
            return set(held)
        held = self._in_window(layer, held, newest)
        if self.policy == "sliding_window":
            first = []
        elif self.policy == "streaming_llm":
            first = sorted(p for p in held if p < 4)
        else:
            recent = math.ceil(budget / 2)
            old = [p for p in held if p <= newest - recent]
            mass = self.mass[layer][head]
            first = sorted(old, key=lambda p: (-mass[p], -p))[: budget - recent]
            held = {p for p in held if p > newest - recent}
        rest = sorted(held - set(first), reverse=True)[: budget - len(first)]
        return set(first) | set(rest)
