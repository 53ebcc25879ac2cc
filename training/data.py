"""Training batches: windows of real source code, with facts scattered in them and asked for at the end."""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer

from squeezeattention.tasks import corpus, recall

IGNORE = -100
#: Loss weight of an answer: its first digit says *which* fact was found, the others follow by copying.
FIRST_DIGIT_WEIGHT = 8.0
ANSWER_WEIGHT = 1.5


class Documents:
    """Draws batches of one length: ``[B, T + 1]`` token ids and the loss weight of each target token."""

    def __init__(self, tokenizer: Tokenizer, *, held_out: bool, seed: int) -> None:
        self.rng = random.Random(seed)
        self.held_out = held_out
        self.tokenizer = tokenizer
        self.lines = [
            [tokenizer.encode(line).ids for line in text.splitlines(keepends=True)]
            for _, text in corpus.modules(held_out=held_out)
        ]
        self._weights = [len(lines) for lines in self.lines]

    def batch(self, rows: int, length: int, recall_share: float) -> tuple[torch.Tensor, torch.Tensor]:
        documents = [
            self.recall(length) if self.rng.random() < recall_share else self.code(length)
            for _ in range(rows)
        ]
        tokens = torch.tensor([tokens for tokens, _ in documents])
        weights = torch.tensor([weights for _, weights in documents])
        return tokens, weights

    def code(self, length: int) -> tuple[list[int], list[float]]:
        """Plain source code: every token counts."""
        tokens = [token for line in self._filler(length + 1) for token in line][: length + 1]
        return tokens, [1.0] * (length + 1)

    def recall(self, length: int, facts: int | None = None) -> tuple[list[int], list[float]]:
        """Code with facts in it and one question a fact after it; numbers weigh nothing, answers much."""
        encode = self.tokenizer.encode
        cost = len(encode(recall.Fact("amber falcon", "0" * recall.DIGITS).statement).ids)
        # Short contexts are nearly all facts and questions: telling names apart is what takes longest to learn.
        most = min(16, max(1, (length + 1) // (2 * cost if length <= 128 else 2 * cost + 6)))
        count = facts or self.rng.randint((most + 1) // 2, most)
        chosen = recall.draw_facts(self.rng, count, held_out=self.held_out)
        stated: list[tuple[list[int], list[float]]] = []
        asked: list[tuple[list[int], list[float]]] = []
        for fact in chosen:
            head = encode(fact.question.replace("recall", "remember")).ids
            answer = encode(fact.answer).ids
            stated.append((head + answer, [0.3] * len(head) + [0.0] * (len(answer) - 1) + [1.0]))
            head = encode(fact.question).ids
            weights = [ANSWER_WEIGHT, FIRST_DIGIT_WEIGHT] + [ANSWER_WEIGHT] * (len(answer) - 2)
            asked.append((head + answer, [0.0] * len(head) + weights))
        # The rest of the room is code; questions repeat where the context is long, for a dense signal.
        self.rng.shuffle(asked)
        if length >= 256:
            asked = (asked * 4)[: max(len(asked), min(16, length // 64))]
        taken = sum(len(tokens) for tokens, _ in stated + asked)
        lines = [(line, [1.0] * len(line)) for line in self._filler(max(0, length + 1 - taken), exact=True)]
        places = sorted(self.rng.randrange(len(lines) + 1) for _ in stated)
        for shift, (place, fact_line) in enumerate(zip(places, stated, strict=True)):
            lines.insert(place + shift, fact_line)
        parts = lines + asked
        tokens = [token for line, _ in parts for token in line][: length + 1]
        weights = [weight for _, line in parts for weight in line][: length + 1]
        return tokens, weights

    def _filler(self, size: int, exact: bool = False) -> list[list[int]]:
        """Successive lines of one module (then another) holding at least, or exactly, ``size`` tokens."""
        out: list[list[int]] = []
        have = 0
        while have < size:
            lines = self.rng.choices(self.lines, self._weights)[0]
            for line in lines[self.rng.randrange(len(lines)) :]:
                out.append(line)
                have += len(line)
                if have >= size:
                    break
        if exact and have > size:
            cut = have - size
            # Shorten from the front so that the text still ends at a line's end.
            while cut and out:
                drop = min(cut, len(out[0]))
                out[0] = out[0][drop:]
                cut -= drop
                if not out[0]:
                    out.pop(0)
        return out
