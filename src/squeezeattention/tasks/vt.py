"""RULER's variable tracking: chains of assignments in noise (Hsieh et al., COLM 2024, arXiv 2404.06654)."""

from __future__ import annotations

import random
import string

from ..errors import ConfigError
from .base import Question
from .generated import Draft, GeneratedTask, at_least
from .names import draw_codes
from .noise import hide

#: What is asked; ``{n}`` variables have the value ``{v}``.
ASK = (
    "Question: Find all variables that are assigned the value {v} in the text above. Answer: According to the "
    "chain(s) of variable assignment in the text above, {n} variables are assigned the value {v}, they are:"
)
_EXAMPLE_FROM = 1024  # tokens; shorter contexts have no room for it


class VariableTracking(GeneratedTask):
    """RULER vt: which variables have a value that was handed on from one to the next.

    ``chains`` chains of ``hops`` assignments after the first, in order, scattered in noise; the variables of one chain
    are wanted. From 1,024 tokens on a worked example comes first, as RULER gives one.
    """

    name = "vt"
    metric = "string_match_all"
    chance = 0.5
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
        chained = [assignments(chain, value) for chain, value in zip(variables, values, strict=True)]
        text, numbers = hide(rng, interleaved(rng, chained), sentences)
        context = f"Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{text}\n"
        ask = ASK.format(v=values[0], n=size)
        question = Question(ask, tuple(variables[0]), self.new_tokens, f" {' '.join(variables[0])}\n")
        return context, question, {"chains": variables, "values": values, "lines": numbers}


def assignments(variables: list[str], value: str, word: str = "VAR ") -> list[str]:
    """``VAR a = 123``, ``VAR b = VAR a``, ...: the value handed on from one variable to the next."""
    sources = [value, *(f"{word}{variable}" for variable in variables)]
    return [f"{word}{variable} = {source}" for variable, source in zip(variables, sources, strict=False)]


def interleaved(rng: random.Random, chains: list[list[str]]) -> list[str]:
    """Chains shuffled into one another; each keeps its own order."""
    order = [number for number, chain in enumerate(chains) for _ in chain]
    rng.shuffle(order)
    left = [iter(chain) for chain in chains]
    return [next(left[number]) for number in order]
