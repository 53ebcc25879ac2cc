"""Training batches: windows of real source code, with facts scattered in them and asked for at the end."""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer

from squeezeattention.tasks import corpus, recall

IGNORE = -100
#: Loss weight of an answer: its first digit says *which* fact was found, the others follow by copying.
FIRST_DIGIT_WEIGHT = 5.0
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

    def batch(
        self, rows: int, length: int, recall_share: float, copy_share: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kinds = self.rng.choices(
            [self.recall, self.copying, self.code], [recall_share, copy_share, 1 - recall_share - copy_share], k=rows
        )
        documents = [kind(length) for kind in kinds]
        tokens = torch.tensor([tokens for tokens, _ in documents])
        weights = torch.tensor([weights for _, weights in documents])
        return tokens, weights

    def code(self, length: int) -> tuple[list[int], list[float]]:
        """Plain source code: every token counts."""
        tokens = [token for line in self._filler(length + 1) for token in line][: length + 1]
        return tokens, [1.0] * (length + 1)

    def recall(self, length: int, facts: int | None = None) -> tuple[list[int], list[float]]:
        """Code with facts in it and one question a fact after it; numbers weigh nothing, answers much."""
        cost = len(self.tokenizer.encode(recall.Fact("amber falcon", "0" * recall.DIGITS).statement).ids)
        # Short contexts are nearly all facts and questions: telling names apart is what takes longest to learn.
        most = min(16, max(1, (length + 1) // (2 * cost if length <= 128 else 2 * cost + 6)))
        count = facts or self.rng.randint((most + 1) // 2, most)
        chosen = recall.draw_facts(self.rng, count, held_out=self.held_out)
        stated = [self._line(fact.question.replace("recall", "remember"), fact.answer, 0.3, 0.0) for fact in chosen]
        # Questions are drawn with replacement: were each asked once, the answer could be had by elimination,
        # and the model would learn that instead of telling names apart.
        drawn = self.rng.choices(chosen, k=max(count, min(16, length // 64)))
        asked = [self._line(fact.question, fact.answer, 0.0, ANSWER_WEIGHT) for fact in drawn]
        for _, weights in asked:
            weights[-1 - recall.DIGITS] = FIRST_DIGIT_WEIGHT
        # The rest of the room is code.
        taken = sum(len(tokens) for tokens, _ in stated + asked)
        lines = [(line, [1.0] * len(line)) for line in self._filler(max(0, length + 1 - taken), exact=True)]
        places = sorted(self.rng.randrange(len(lines) + 1) for _ in stated)
        for shift, (place, fact_line) in enumerate(zip(places, stated, strict=True)):
            lines.insert(place + shift, fact_line)
        parts = lines + asked
        tokens = [token for line, _ in parts for token in line][: length + 1]
        weights = [weight for _, line in parts for weight in line][: length + 1]
        return tokens, weights

    def copying(self, length: int) -> tuple[list[int], list[float]]:
        """Random tokens, code, the same tokens again: the densest lesson in looking something up."""
        size = self.rng.randint(min(8, length // 4), length // 2)
        segment = [self.rng.randrange(2, self.tokenizer.get_vocab_size()) for _ in range(size)]
        code = [token for line in self._filler(length + 1 - 2 * size, exact=True) for token in line]
        return segment + code + segment, [0.0] * size + [1.0] * len(code) + [0.0] + [1.0] * (size - 1)

    def _line(self, head: str, answer: str, head_weight: float, weight: float) -> tuple[list[int], list[float]]:
        """Tokens of one comment line and their weights in the loss."""
        first, last = self.tokenizer.encode(head).ids, self.tokenizer.encode(answer).ids
        return first + last, [head_weight] * len(first) + [weight] * len(last)

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
