"""Train the byte-level BPE: numbers in groups of three digits, capitals in pairs, the word lists' words whole.

Single digits make every long number a chain of ten symbols that all texts share: a small model then finds the first
digit of an answer by its name and goes on from whatever looked like that digit before. A group of three digits is
nearly always the only one of its kind in a text, so going on by what came after it is right. It is the same with
names: one of six pieces (``ra re - ch al k``) is told from another by all of them, one of three (``rare - chalk``) by
its noun. A newline never merges with what follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_uppercase

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from squeezeattention.tasks import TASKS, corpus, resolve_task
from squeezeattention.tasks.words import ADJECTIVES, NOUNS, VERBS

VOCABULARY = 10240
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
#: How often each number of up to three digits, pair of capitals and word of the lists is shown, to become a token.
_TIMES = 1500


def train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # A newline stands alone, so that text tokenised line by line equals text tokenised whole: training
    # documents are assembled from lines that were tokenised once.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.Split(Regex(r" ?\d{1,3}"), "isolated"),  # with the space before it
            pre_tokenizers.Split(Regex(r" ?[A-Z]{1,2}(?![a-z])"), "isolated"),  # not the capital of a word
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
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _texts() -> Iterator[str]:
    """The library's source, the tasks' own words and names (those of training), and every number."""
    yield from (text for _, text in corpus.modules(held_out=False))
    for name in TASKS:
        if name not in ("code", "text_file"):
            task = resolve_task(name, held_out=False)
            for index in range(60):
                sample = task.sample(lambda text: len(text.split()), 1100, 0, index)
                yield sample.context + "".join(question.text + question.reply for question in sample.questions)
    pairs = [f"{first}{second}" for first in ascii_uppercase for second in ascii_uppercase]
    numbers = [f"{number:0{digits}d}" for digits in (1, 2, 3) for number in range(10**digits)]
    pieces = [*numbers, *pairs, *sorted({*ADJECTIVES, *NOUNS, *VERBS})]
    for _ in range(_TIMES):
        yield "\n".join(pieces)
        yield "".join(f" {piece}\n" for piece in pieces)
