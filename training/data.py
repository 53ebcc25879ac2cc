"""Training batches: windows of real source code, with facts scattered in them and asked for at the end."""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer

from squeezeattention.tasks import corpus, recall

IGNORE = -100
#: Loss weight of an answer: its first digits say *which* fact was found, the others follow by copying.
FIRST_DIGITS_WEIGHT = 5.0
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
        self._words = [tokenizer.encode(" " + word).ids[-1] for word in recall.ADJECTIVES + recall.NOUNS]
        self._firsts = [tokenizer.encode(f" {digit}").ids[-1] for digit in range(10)]
        self._digits = [tokenizer.encode(f"{digit}").ids[-1] for digit in range(10)]

    def batch(
        self, rows: int, length: int, recall_share: float, pair_share: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kinds = self.rng.choices(
            [self.recall, self.pairs, self.code], [recall_share, pair_share, 1 - recall_share - pair_share], k=rows
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
        chosen = self._alike(recall.draw_facts(self.rng, count, held_out=self.held_out))
        stated = [self._line(fact.question.replace("recall", "remember"), fact.answer, 0.3, 0.0) for fact in chosen]
        # Questions are drawn with replacement: were each asked once, the answer could be had by elimination,
        # and the model would learn that instead of telling names apart.
        drawn = self.rng.choices(chosen, k=max(count, min(16, length // 64)))
        asked = [self._line(fact.question, fact.answer, 0.0, ANSWER_WEIGHT) for fact in drawn]
        for _, weights in asked:
            weights[-1 - recall.DIGITS : 1 - recall.DIGITS] = [FIRST_DIGITS_WEIGHT] * 2
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

    def pairs(self, length: int) -> tuple[list[int], list[float]]:
        """``falcon 42 river 47 falcon 42 ...``: a few words with a number each, then each of them again; new ones, ...

        The densest lesson in looking up what followed a word. Numbers of two and three digits begin with one of
        two digits, so that the word is needed to go on. Each word comes twice and no more: with more repetitions
        the answer is gathered from earlier answers, and nothing is learned for a question asked once.
        """
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) <= length:
            words = self.rng.sample(self._words, self.rng.randint(2, 8))
            size = self.rng.randint(1, 3)
            firsts = self._firsts if size == 1 else self.rng.sample(self._firsts, 2)
            values = {word: [self.rng.choice(firsts), *self.rng.choices(self._digits, k=size - 1)] for word in words}
            for weight in (0.0, 2.0):
                for word in self.rng.sample(words, len(words)):
                    tokens += [word, *values[word]]
                    weights += [0.0, *[weight] * size]
        return tokens[: length + 1], weights[: length + 1]

    def _alike(self, facts: list[recall.Fact]) -> list[recall.Fact]:
        """The facts, in training half of the time with numbers that begin with one of two digits.

        Else a number can be continued from its first digit alone: the digit after the last one like it. That
        is right until two numbers begin alike, which most contexts of six facts have.
        """
        if self.held_out or self.rng.random() < 0.5:
            return facts
        firsts = self.rng.sample("0123456789", 2)
        return [recall.Fact(fact.name, self.rng.choice(firsts) + fact.value[1:]) for fact in facts]

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
