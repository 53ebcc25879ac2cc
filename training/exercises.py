"""The evaluation's own tasks as training text, on the names of training: a context, a question and its reply."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from tokenizers import Tokenizer

from retrieval import ANSWER, LIGHT, Document, second_times
from squeezeattention.errors import ConfigError
from squeezeattention.tasks import TASKS, Question, Sample, resolve_task
from squeezeattention.tasks.names import draw_names
from squeezeattention.tasks.vt import VariableTracking

#: How often each task is drawn. Those that need no more than a number found are taught by ``retrieval.py``.
_WEIGHTS = {
    "vt": 8.0, "cwe": 8.0, "fwe": 4.0, "niah_single_1": 4.0, "niah_multikey_2": 12.0, "passkey": 0.5,
    "recall": 0.5, "track": 1.0, "copy": 1.0, "ledger": 0.5, "sort": 0.5, "kv_retrieval": 0.5, "niah_multikey_3": 0.5,
}  # fmt: skip
_NEEDLE = re.compile(r"^One of the special magic \w+ for (\S+) is: (\S+)\.$", re.MULTILINE)
_WORKED = re.compile(r"they are:(.+)\n?")  # the reply of variable tracking's worked example
_NUMBER = re.compile(r"\b\d{7}\b")
_ENTRY = re.compile(r"(?<=\d\. )[a-z-]+(?: [a-z]+)?")
_TOKENS_FOR_ONE_MORE = 150  # of a row, for a further question about its needles
_TOKENS_OF_A_NAME = 0.7  # what a numbered entry of a list grows by if it is a name of two words
#: Ten numbered words; a further question with its reply, about a needle or about a chain.
_TOKENS_OF_A_REPLY, _TOKENS_OF_A_NEEDLE, _TOKENS_OF_A_CHAIN = 48, 48, 72


def _with_numbers_alike(sample: Sample, rng: random.Random) -> Sample:
    """Numbers that begin alike, so that the key is needed to go on: of a hundred by chance, one in eight does."""
    numbers = sorted({value for _, value in _NEEDLE.findall(sample.context)})
    starts = [str(start) for start in rng.sample(range(100, 1000), len(numbers) // 4 + 2)]
    drawn = {number: f"{rng.choice(starts)}{rng.randrange(10_000):04d}" for number in numbers}

    def renumbered(text: str) -> str:
        return _NUMBER.sub(lambda found: drawn.get(found[0], found[0]), text)

    questions = tuple(
        replace(asked, answers=tuple(map(renumbered, asked.answers)), reply=renumbered(asked.reply))
        for asked in sample.questions
    )
    return replace(sample, context=renumbered(sample.context), questions=questions)


class Exercises:
    """Draws samples of :data:`~squeezeattention.tasks.TASKS` that fit into a number of tokens, reply included."""

    def __init__(self, tokenizer: Tokenizer, *, held_out: bool) -> None:
        self.tokenizer, self.held_out = tokenizer, held_out
        self.tasks = {name: resolve_task(name, held_out=held_out) for name in TASKS if name in _WEIGHTS}
        #: One chain, as it is evaluated, could be told by what its variables look like; several have to be followed.
        self.chains = [VariableTracking(held_out, chains) for chains in (1, 1, 2, 3, 4)]

    def draw(self, rng: random.Random, size: int) -> Document | None:
        names = list(self.tasks)
        for _ in range(8):
            name = rng.choices(names, [_WEIGHTS[name] for name in names])[0]
            document = self.one(name, rng.getrandbits(40), size)
            if document is not None:
                return document
        return None

    def one(self, name: str, seed: int, size: int) -> Document | None:
        """A sample of one task, or ``None`` if it does not fit."""
        rng, task = random.Random(seed), self.tasks[name]
        more, each = 0, _TOKENS_OF_A_NEEDLE
        if name.startswith("niah_multikey"):
            # Fewer questions leave room for a longer context: a row's last positions have to be learned as well.
            most = size // _TOKENS_FOR_ONE_MORE
            more = rng.randint(min(1, most), most)
        elif name == "vt":
            task = rng.choice(self.chains)
            more, each = task.chains - 1, _TOKENS_OF_A_CHAIN
        room = _TOKENS_OF_A_REPLY + each * more
        alike = name == "niah_multikey_2" and rng.random() < 0.6
        # Of training's words alone a list would teach which words are answers rather than which are frequent.
        named = rng.choice((0.0, 0.5, 0.5, 1.0)) if name == "cwe" else 0.0
        # Replies of the long decodes are as long as their contexts: leave room for them.
        for length in (max(1, size - room), size * 3 // 4, size // 2, size * 2 // 5):
            try:
                sample = task.sample(self._count, int(length / (1 + _TOKENS_OF_A_NAME * named)), seed, 0)
            except ConfigError:
                continue  # too short for this task
            if alike:
                sample = _with_numbers_alike(sample, rng)
            if name == "cwe":
                sample = self._ordered(self._with_names(sample, named, rng))
            tokens, weights = self._context(sample.context)
            answered = False
            for question in [*sample.questions, *self._others(sample, more, rng)]:
                ask, reply = self._encode(question.text), self._encode(question.reply)
                if len(tokens) + len(ask) + len(reply) > size:
                    break
                tokens += ask + reply
                weights += [LIGHT] * len(ask) + [ANSWER] * len(reply)
                answered = True
            if answered:
                return tokens, weights
        return None

    def _with_names(self, sample: Sample, share: float, rng: random.Random) -> Sample:
        """Some of a list's words made into names of two, so that no word is never an answer."""
        words = sorted(set(_ENTRY.findall(sample.context)))
        some = [word for word in words if rng.random() < share]
        drawn = draw_names(rng, len(some), held_out=self.held_out)
        between = rng.choice("- ")  # after a space a word is the token that it is alone
        names = {word: name.replace("-", between) for word, name in zip(some, drawn, strict=True)}

        def renamed(text: str) -> str:
            return _ENTRY.sub(lambda found: names.get(found[0], found[0]), text)

        (asked,) = sample.questions
        question = replace(asked, answers=tuple(names.get(word, word) for word in asked.answers))
        return replace(sample, context=renamed(sample.context), questions=(question,))

    def _ordered(self, sample: Sample) -> Sample:
        """Common words as :meth:`Retrieval.doubles` names them; the task takes them in any order."""
        (question,) = sample.questions
        entries = _ENTRY.findall(sample.context.rpartition("Below is")[2])
        words = [word for word in second_times(entries) if word in question.answers]
        reply = " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
        return replace(sample, questions=(replace(question, reply=f" {reply}\n"),))

    def _context(self, text: str) -> Document:
        """Light, but for the reply of a worked example: an answer too, and there in every context."""
        encoded = self.tokenizer.encode(text)
        worked = _WORKED.search(text)
        start, end = worked.span(1) if worked else (0, 0)
        return encoded.ids, [ANSWER if start <= first < end else LIGHT for first, _ in encoded.offsets]

    def _others(self, sample: Sample, count: int, rng: random.Random) -> list[Question]:
        """Questions about other needles or chains: with one alone, a long row would be a lesson of one number."""
        asked = sample.questions[0]
        if sample.task == "vt":
            (value, *values), (_, *chains) = sample.details["values"], sample.details["chains"]
            return [
                replace(asked, text=asked.text.replace(value, other), reply=f" {' '.join(chain)}\n")
                for other, chain in zip(values, chains, strict=True)
            ]
        found = _NEEDLE.findall(sample.context)
        key = next((key for key, value in found if value in asked.answers), None)
        if key is None:
            return []
        drawn = rng.choices(found, k=count)
        return [replace(asked, text=asked.text.replace(key, other), reply=f" {value}.\n") for other, value in drawn]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def _count(self, text: str) -> int:
        return len(self._encode(text))
