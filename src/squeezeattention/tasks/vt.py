"""RULER's variable tracking: chains of assignments in noise (Hsieh et al., COLM 2024, arXiv 2404.06654)."""

from __future__ import annotations

import random
import string

from ..errors import ConfigError
from .base import Question
from .generated import Draft, GeneratedTask, at_least
from .names import draw_codes
from .noise import hide

_EXAMPLE_FROM = 1024  # tokens; shorter contexts have no room for it


class VariableTracking(GeneratedTask):
    """RULER vt: which variables have a value that was handed on from one to the next.

    ``chains`` chains of ``hops`` assignments after the first, in order, scattered in noise; the variables of one chain
    are wanted. From 1,024 tokens on a worked example comes first, as RULER gives one.
    """

    name = "vt"
    metric = "string_match_all"
    summary = "RULER: variables that a value was handed on to"
    new_tokens = 30

    def __init__(self, held_out: bool = True, chains: int = 1, hops: int = 4) -> None:
        super().__init__(held_out)
        at_least(1, chains=chains, hops=hops)
        if chains * (hops + 1) > 1_000:
            raise ConfigError(f"{chains} chains of {hops} hops are too many: 1,000 assignments are the most")
        self.chains = chains
        self.hops = hops

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        example = ""
        if length >= _EXAMPLE_FROM:  # shorter names than those asked for, so that none of them is an answer
            context, question, _ = self._problem(rng, letters=3, chains=1, sentences=5 * (self.hops + 1))
            example = context + question.text + question.reply + "\n"
        context, question, details = self._problem(rng, letters=5, chains=self.chains, sentences=units)
        return Draft(example + context, (question,), details={**details, "example": bool(example)})

    def _problem(
        self, rng: random.Random, *, letters: int, chains: int, sentences: int
    ) -> tuple[str, Question, dict[str, object]]:
        size = self.hops + 1
        codes = draw_codes(rng, chains * size, string.ascii_uppercase, letters, held_out=self.held_out)
        variables = [codes[start : start + size] for start in range(0, len(codes), size)]
        values = [str(value) for value in rng.sample(range(10_000, 100_000), chains)]
        waiting = [_assignments(chain, value) for chain, value in zip(variables, values, strict=True)]
        # Chains are shuffled into one another; each keeps its own order.
        order = [number for number, chain in enumerate(waiting) for _ in chain]
        rng.shuffle(order)
        text, numbers = hide(rng, [waiting[number].pop(0) for number in order], sentences)
        context = f"Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{text}\n"
        ask = (
            f"Question: Find all variables that are assigned the value {values[0]} in the text above. Answer: "
            f"According to the chain(s) of variable assignment in the text above, {size} variables are assigned "
            f"the value {values[0]}, they are:"
        )
        question = Question(ask, tuple(variables[0]), self.new_tokens, f" {' '.join(variables[0])}\n")
        return context, question, {"chains": variables, "values": values, "lines": numbers}


def _assignments(variables: list[str], value: str) -> list[str]:
    sources = [value, *(f"VAR {variable}" for variable in variables)]
    return [f"VAR {variable} = {source}" for variable, source in zip(variables, sources, strict=False)]
