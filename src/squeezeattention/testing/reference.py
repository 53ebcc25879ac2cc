"""What the cache must compute, written so that it can be read in one go and trusted.

No cache at all: every token is computed by a forward over the whole text so far, in float64, with eager attention
and an explicit keep-mask for each layer, head and query. Rows are computed alone and without padding. Slow on
purpose; it knows nothing of the cache's code.

Step by step (:meth:`~NaiveReference.read`, :meth:`~NaiveReference.cut`, :meth:`~NaiveReference.step`) that is one
forward a token. :meth:`~NaiveReference.run` tells a whole story at once. What a step evicts may hang on the attention
of the steps before it, so the story is told again and again, each time with the attention of the last time, until
nothing changes: a telling that is right up to a step is followed by one that is right up to the next at least.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ..errors import ConfigError

#: Policies that it knows by name.
REFERENCE_POLICIES = ("sliding_window", "streaming_llm", "h2o")
#: Layer, head, positions held, budget, newest position -> positions that stay.
Choice = Callable[[int, int, set[int], int, int], set[int]]


class NaiveReference:
    """One row of text under one policy and one list of budgets.

    Args:
        model: a transformers model; a float64 eager copy of it is used.
        policy: "sliding_window", "streaming_llm" (4 sinks), "h2o", or a function of layer, head, the positions held,
            budget and newest position that gives those that stay.
        windows: native window of each layer or ``None``.
        kv_heads: heads that the cache stores.
    """

    def __init__(self, model: Any, policy: str | Choice, windows: Sequence[int | None], kv_heads: int) -> None:
        self.model = copy.deepcopy(model).double()
        for module in self.model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation_internal = "eager"
                module.config._experts_implementation_internal = "eager"
        if not callable(policy) and policy not in REFERENCE_POLICIES:
            raise ConfigError(f"the reference knows {', '.join(REFERENCE_POLICIES)}, not {policy!r}: give a function")
        self.policy, self.windows, self.kv_heads = policy, list(windows), kv_heads
        self.n_layers = len(self.windows)
        #: Set it where the attention of a step decides nothing (every policy but H2O): then reading and steps give no
        #: logits, and :meth:`logits` has all of them for one forward.
        self.silent = False
        self._hook()
        self._restart()

    def _restart(self) -> None:
        kv_heads = self.kv_heads
        self.tokens: list[int] = []
        # seen[layer][head, query, position]: whether the query may see the position
        self.seen = [torch.zeros(kv_heads, 0, 0, dtype=torch.bool) for _ in self.windows]
        # kept[layer][head] = set of positions held; mass[layer][head, position] = attention received
        self.kept: list[list[set[int]]] = [[set() for _ in range(kv_heads)] for _ in self.windows]
        self.mass = [torch.empty(kv_heads, 0, dtype=torch.float64) for _ in self.windows]
        self.budgets: list[list[int]] = []  # of each layer's heads
        # While a story is told: [kv_heads, 1 + query, position] what each position has received before a query
        self._foreseen: list[torch.Tensor] | None = None

    def _hook(self) -> None:
        self._weights: dict[int, torch.Tensor] = {}
        for module in self.model.modules():
            index = getattr(module, "layer_idx", None)
            if "Attention" in type(module).__name__ and isinstance(index, int):
                module.register_forward_pre_hook(self._give_mask, with_kwargs=True)
                module.register_forward_hook(self._take_weights)

    def _give_mask(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        length = len(self.tokens)
        seen = self.seen[module.layer_idx][:, :length, :length]
        hidden = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
        group = self.model.config.num_attention_heads // self.kv_heads
        return args, {**kwargs, "attention_mask": hidden.repeat_interleave(group, dim=0)[None]}

    def _room(self, length: int) -> None:
        """Make room for so many tokens in ``seen``."""
        for layer, old in enumerate(self.seen):
            if length > old.shape[1]:
                grow = max(length, 2 * old.shape[1]) - old.shape[1]
                self.seen[layer] = F.pad(old, (0, grow, 0, grow))

    def _take_weights(self, module: Any, args: Any, output: Any) -> None:
        weights = output[1]
        self._weights[module.layer_idx] = weights[0].unflatten(0, (self.kv_heads, -1)).mean(1)

    def _forward(self, new: int) -> torch.Tensor:
        """Run over everything; count the attention of the last ``new`` queries; their logits [new, V]."""
        if self.silent:
            return torch.empty(new, 0)
        if self._foreseen is not None:
            self.mass = [received[:, len(self.tokens)] for received in self._foreseen]
            return torch.empty(new, 0)
        logits = self.logits()
        for layer, mass in enumerate(self.mass):
            received = self._weights[layer][:, -new:].sum(1)
            received[:, : mass.shape[1]] += mass
            self.mass[layer] = received
        return logits[-new:]

    def logits(self) -> torch.Tensor:
        """Logits of every token so far [T, V]."""
        with torch.no_grad():
            logits: torch.Tensor = self.model(input_ids=torch.tensor([self.tokens]), use_cache=False).logits[0]
        return logits

    def _in_window(self, layer: int, positions: set[int], query: int) -> set[int]:
        window = self.windows[layer]
        return {p for p in positions if window is None or p > query - window}

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        """A prompt or a further turn: each token sees what is kept and the new tokens before it."""
        first, self.tokens = len(self.tokens), self.tokens + list(tokens)
        last = len(self.tokens)
        self._room(last)
        for layer, window in enumerate(self.windows):
            for head in range(self.kv_heads):
                seen = self.seen[layer][head, first:last]
                seen[:, sorted(self.kept[layer][head])] = True
                seen[:, first:last] = torch.ones(last - first, last - first, dtype=torch.bool).tril()
                if window is not None:
                    seen &= torch.arange(seen.shape[1]) > torch.arange(first, last)[:, None] - window
                self.kept[layer][head] |= set(range(first, last))
        return self._forward(len(tokens))

    def cut(self, budgets: Sequence[int | Sequence[int]]) -> None:
        """The end of a prompt: every layer to its budget, or each of its heads to its own."""
        self.budgets = [[b] * self.kv_heads if isinstance(b, int) else list(b) for b in budgets]
        newest = len(self.tokens) - 1
        for layer, heads in enumerate(self.budgets):
            for head, budget in enumerate(heads):
                self.kept[layer][head] = self._in_window(layer, self.kept[layer][head], newest)
                self.kept[layer][head] = self._choose(layer, head, budget, newest)

    def step(self, token: int) -> torch.Tensor:
        """One generated token: it is taken in (evicting), then attends. Its logits [V]."""
        query = len(self.tokens)
        self.tokens.append(token)
        self._room(len(self.tokens))
        for layer, heads in enumerate(self.budgets):
            for head, budget in enumerate(heads):
                self.kept[layer][head].add(query)
                self.kept[layer][head] = self._choose(layer, head, budget, query)
                self.seen[layer][head, query, list(self._in_window(layer, self.kept[layer][head], query))] = True
        return self._forward(1)[0]

    def run(
        self, prompt: Sequence[int], budgets: Sequence[int | Sequence[int]], generated: Sequence[int]
    ) -> torch.Tensor:
        """A whole story: prompt, cut, then ``generated`` tokens one by one. Logits of every token [T, V]."""
        length = len(prompt) + len(generated)
        foreseen = [torch.zeros(self.kv_heads, length + 1, length, dtype=torch.float64) for _ in self.windows]
        told: list[torch.Tensor] = []
        logits = torch.empty(0)
        while True:
            self._restart()
            self._room(length)
            self._foreseen = foreseen
            self.read(prompt)
            self.cut(budgets)
            for token in generated:
                self.step(token)
            if told and all(map(torch.equal, told, self.seen)):
                return logits
            told = self.seen
            logits = self.logits()
            foreseen = [F.pad(self._weights[layer].cumsum(1), (0, 0, 1, 0)) for layer in range(self.n_layers)]

    def _choose(self, layer: int, head: int, budget: int, newest: int) -> set[int]:
        """The tokens that stay of those held, ``newest`` being the youngest."""
        held = self.kept[layer][head]
        window = self.windows[layer]
        if window is not None:
            budget = min(budget, window)
        if callable(self.policy):
            return self.policy(layer, head, held, budget, newest)
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
            mass = self.mass[layer][head].tolist()
            first = sorted(old, key=lambda p: (-mass[p], -p))[: budget - recent]
            held = {p for p in held if p > newest - recent}
        rest = sorted(held - set(first), reverse=True)[: budget - len(first)]
        return set(first) | set(rest)
