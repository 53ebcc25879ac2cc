"""Training text: documents of several kinds, packed into rows of one length, with a loss weight for each token.

A document is ``(tokens, weights)``. Text that cannot be foreseen (names, random numbers) weighs little, answers much:
they are a small part of the tokens and all of the lesson.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import torch
from tokenizers import Tokenizer

from exercises import Exercises
from retrieval import Document, Retrieval
from squeezeattention.tasks import corpus
from tokenizer import END_OF_TEXT

#: Percent of the rows that are of each kind, by the length of the rows: short ones are for learning to look things up
#: at all, then for what is new (what came before something, counting), long ones for the tasks themselves.
_PERCENT = {  # 64, 128, 256, 512 and 2,048 tokens or more
    "pairs":     (35, 10,  6,  3,  1),
    "mirrored":  (10, 18, 14,  2,  1),
    "repeats":   (12,  4,  4,  3,  2),
    "counted":   ( 5, 14, 12,  5,  7),
    "doubles":   ( 5, 20, 20, 16, 17),
    "codes":     ( 0,  8, 10,  4,  4),
    "handed":    ( 0, 12, 14,  9,  7),
    "needles":   (22, 10,  8, 12, 10),
    "exercises": ( 0,  0,  8, 38, 44),
    "code":      (11,  4,  4,  8,  7),
}  # fmt: skip
_LENGTHS = (64, 128, 256, 512, 2048)
SHARES = {length: {kind: row[i] for kind, row in _PERCENT.items()} for i, length in enumerate(_LENGTHS)}
_LEAST = 32  # tokens; what is left of a row below that is filled with code


class Documents:
    """Draws batches of rows: ``[B, T + 1]`` token ids and the loss weight of each token as a target."""

    def __init__(self, tokenizer: Tokenizer, *, held_out: bool, seed: int) -> None:
        self.rng = random.Random(seed)
        self.end = tokenizer.token_to_id(END_OF_TEXT)
        self.lines = [
            [tokenizer.encode(line).ids for line in text.splitlines(keepends=True)]
            for _, text in corpus.modules(held_out=held_out)
        ]
        self._sizes = [len(lines) for lines in self.lines]
        retrieval = Retrieval(tokenizer, self.filler, held_out=held_out)
        self.kinds: dict[str, Callable[[random.Random, int], Document | None]] = {
            "code": self.code,
            "pairs": retrieval.pairs,
            "mirrored": retrieval.mirrored,
            "repeats": retrieval.repeats,
            "counted": retrieval.counted,
            "doubles": retrieval.doubles,
            "codes": retrieval.codes,
            "handed": retrieval.handed,
            "needles": retrieval.needles,
            "exercises": Exercises(tokenizer, held_out=held_out).draw,
        }

    @classmethod
    def again(cls, tokenizer: Tokenizer, *, seed: int) -> Documents:
        """Held-out documents, drawn anew from ``seed``; the text is read and tokenised only once."""
        documents = _held_out(tokenizer)
        documents.rng = random.Random(seed)
        return documents

    def batch(self, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        shares = SHARES[max(known for known in SHARES if known <= length)]
        kinds = self.rng.choices(list(shares), list(shares.values()), k=rows)
        documents = [self.row(kind, length) for kind in kinds]
        return torch.tensor([d[0] for d in documents]), torch.tensor([d[1] for d in documents])

    def row(self, kind: str, length: int) -> Document:
        """Documents of one kind, one after another, until the row is full."""
        tokens: list[int] = []
        weights: list[float] = []
        while (room := length + 1 - len(tokens)) >= _LEAST:
            # Of what is hard to begin with, many short ones rather than a long one.
            whole = 0.35 if kind in ("exercises", "doubles") and length < 2048 else 0.5
            size = room if self.rng.random() < whole else self.rng.randint(min(room, 64), room)
            document = self.kinds[kind](self.rng, size - 1)
            if document is None:  # no room for one
                break
            tokens += [*document[0], self.end]
            weights += [*document[1], 0.0]
        rest, heavy = self.code(self.rng, max(1, length + 1 - len(tokens)))
        return (tokens + rest)[: length + 1], (weights + heavy)[: length + 1]

    def code(self, rng: random.Random, size: int) -> Document:
        """Plain source code: every token counts."""
        tokens = [token for line in self.filler(rng, size) for token in line][:size]
        return tokens, [1.0] * size

    def filler(self, rng: random.Random, size: int) -> list[list[int]]:
        """Successive lines of one module (then another) that hold at least ``size`` tokens."""
        out: list[list[int]] = []
        have = 0
        while have < size:
            lines = rng.choices(self.lines, self._sizes)[0]
            for line in lines[rng.randrange(len(lines)) :]:
                out.append(line)
                have += len(line)
                if have >= size:
                    break
        return out


@cache
def _held_out(tokenizer: Tokenizer) -> Documents:
    return Documents(tokenizer, held_out=True, seed=0)
