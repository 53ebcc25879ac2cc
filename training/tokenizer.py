"""Train the byte-level BPE: 2,048 tokens, single digits, newlines never merged with what follows."""

from __future__ import annotations

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from squeezeattention.tasks import corpus, recall

VOCABULARY = 2048
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"


def train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # A newline stands alone, so that text tokenised line by line equals text tokenised whole: training
    # documents are assembled from lines that were tokenised once.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.Split(Regex(r" ?\d"), "isolated"),  # one digit a token, with the space before it
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(0)
    facts = [fact for _ in range(1000) for fact in recall.draw_facts(rng, 40, held_out=False)]
    lines = "".join(fact.statement + fact.question + fact.answer for fact in facts)
    sources = [text for _, text in corpus.modules(held_out=False)]
    tokenizer.train_from_iterator([*sources, lines], trainer)
    return tokenizer
