"""Key-value retrieval (Liu et al., "Lost in the Middle", TACL 2024, arXiv 2307.03172)."""

from __future__ import annotations

import json
import random

from .base import Question
from .generated import Draft, GeneratedTask, at_least
from .niah import random_uuid


class KeyValueRetrieval(GeneratedTask):
    """A JSON object of random uuids, and the values of ``questions`` different keys of it, one question each."""

    name = "kv_retrieval"
    metric = "exact_recall"
    summary = "values of a JSON object of uuids, several questions a context"

    def __init__(self, held_out: bool = True, questions: int = 4) -> None:
        super().__init__(held_out)
        at_least(1, questions=questions)
        self.questions = questions

    def least(self, length: int) -> int:
        return 2  # one value alone could be told without its key

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        pairs = {random_uuid(rng): random_uuid(rng) for _ in range(units)}
        keys = list(pairs)
        asked = sorted(rng.sample(range(units), min(self.questions, units)))
        rows = json.dumps(pairs, separators=(",\n ", ": "))
        context = (
            f"Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n{rows}\n\n"
        )
        questions = tuple(
            Question(f'Key: "{key}"\nCorresponding value:', (pairs[key],), 0, f' "{pairs[key]}"\n')
            for key in (keys[number] for number in asked)
        )
        return Draft(context, questions, details={"pairs": units, "asked": asked})
