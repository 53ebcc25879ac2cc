"""Documents that teach looking things up: bare pairs, repeated spans, and facts of every form with questions."""

from __future__ import annotations

import itertools
import random
import string
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

from tokenizers import Tokenizer

from squeezeattention.tasks import cwe, fwe, recall, vt
from squeezeattention.tasks.names import draw_codes, draw_names, draw_words
from squeezeattention.tasks.niah import random_uuid
from squeezeattention.tasks.noise import FILLER
from squeezeattention.tasks.recall import is_held_out_name
from squeezeattention.tasks.words import ADJECTIVES, NOUNS, VERBS

_MAGIC = "One of the special magic numbers for {k} is: {v}.\n"
_ASK_MAGIC = "The special magic number for {k} mentioned in the provided text is"
#: (statement, question, what follows the answer); the question ends where the answer begins.
_FORMS = (
    (_MAGIC, _ASK_MAGIC, ".\n"),
    (_MAGIC, f"What is the special magic number for {{k}} mentioned in the provided text? {_ASK_MAGIC}", ".\n"),
    ("# remember {k} {v}\n", "# recall {k}", "\n"),
    ("{k}: {v}\n", "{k}:", "\n"),
    ("{k} = {v}\n", "print({k})  #", "\n"),
    ("The pass key of {k} is {v}. Remember it.\n", "What is the pass key of {k}? The pass key is", ".\n"),
    ('"{k}": "{v}",\n', 'Key: "{k}"\nCorresponding value: "', '"\n'),
)
#: Loss weights: what cannot be foreseen, an answer's first token (it says *which* fact was found), its others.
LIGHT, FIRST, ANSWER = 0.02, 5.0, 2.0

Document = tuple[list[int], list[float]]


Thing = TypeVar("Thing")


def second_times(things: Iterable[Thing]) -> list[Thing]:
    """What occurs more than once, in the order in which it came for the second time."""
    seen, found = Counter[Thing](), []
    for thing in things:
        seen[thing] += 1
        if seen[thing] == 2:
            found.append(thing)
    return found


class Retrieval:
    """Makes documents of a given number of tokens; names are of training, or the held-out ones."""

    def __init__(
        self, tokenizer: Tokenizer, filler: Callable[[random.Random, int], list[list[int]]], *, held_out: bool
    ) -> None:
        self.tokenizer, self.filler, self.held_out = tokenizer, filler, held_out
        vocabulary = tokenizer.get_vocab()
        letters = [token for token in vocabulary if token[0] == "Ġ" and token[1:].isalpha() and token[1:].isascii()]
        self.words = sorted(vocabulary[token] for token in letters)
        self.known = [word for word in self.words if not is_held_out_name(tokenizer.decode([word]).strip())]
        #: Words of the lists; a name of two is of this side or not, whatever its words are alone.
        self.listed = [vocabulary[f"Ġ{word}"] for word in {*ADJECTIVES, *NOUNS, *VERBS} if f"Ġ{word}" in vocabulary]
        self.listed.sort()
        self.firsts = [vocabulary[f"Ġ{number:03d}"] for number in range(1000)]
        self.groups = [vocabulary[f"{number:03d}"] for number in range(1000)]
        #: What codes of capitals are spelled with: met nowhere else, and to be copied by what they look like.
        two = ["".join(pair) for pair in itertools.product(string.ascii_uppercase, repeat=2)]
        self.capitals = [vocabulary[piece] for pair in two for piece in (f"Ġ{pair}", pair) if piece in vocabulary]
        self.newline, self.numbers = tokenizer.encode("\n").ids, list[list[int]]()
        self.noise = [tokenizer.encode(f"{' '.join(FILLER)}\n").ids]

    def pairs(self, rng: random.Random, size: int) -> Document:
        """``falcon 425 river 471 falcon 425 ...``: a few words with a number each, each of them again, new ones, ...

        The densest lesson in looking up what followed a word. Each word comes twice and no more: with more repetitions
        the answer is gathered from earlier answers, and nothing is learned for a question asked once.
        """
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) < size:
            values = self._numbered(rng, max(2, min(24, size // 10)), rng.randint(1, 3))
            for weight in (0.0, 2.0):
                for name in rng.sample(list(values), len(values)):
                    tokens += [*name, *values[name]]
                    weights += [0.0] * len(name) + [weight] * len(values[name])
        return tokens[:size], weights[:size]

    def mirrored(self, rng: random.Random, size: int) -> Document:
        """Pairs asked the other way round, a line each: what came *before* is what following variables takes."""
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) < size:
            most = 4 if rng.random() < 0.6 else max(2, min(16, size // 10))  # of few one is soon found
            values = self._numbered(rng, most, 1 if rng.random() < 0.7 else 2)
            for name in rng.sample(list(values), len(values)):
                tokens += [*name, *values[name]]
                weights += [0.0] * (len(name) + len(values[name]))
            for name in rng.sample(list(values), len(values)):
                tokens += [*self.newline, *values[name], *name]
                weights += [0.0] * (1 + len(values[name])) + [2.0] * len(name)
            tokens += [*self.newline, *self.newline]
            weights += [0.0, 0.0]
        return tokens[:size], weights[:size]

    def _numbered(self, rng: random.Random, most: int, length: int) -> dict[tuple[int, ...], list[int]]:
        """Up to ``most`` names of one or two words, and a number of ``length`` groups for each."""
        count, width = rng.randint(2, most), rng.randint(1, 2)
        # Two words of few: neither alone tells which name it is.
        few = rng.sample(self.words, count // 2 + 3) if width == 2 and rng.random() < 0.6 else self.words
        names = [self._pair_name(rng, width, few) for _ in range(count)]
        # Few first groups, so that the word is needed to go on.
        firsts = self.firsts if length == 1 else rng.sample(self.firsts, max(2, count // 3))
        return {name: [rng.choice(firsts), *rng.choices(self.groups, k=length - 1)] for name in names}

    def repeats(self, rng: random.Random, size: int) -> Document:
        """Random words and numbers, spans of which come again: what followed the last tokens follows them again."""
        others = rng.choice(([], [*self.firsts, *self.groups], self.capitals))
        pool = [*self.known, *others] if rng.random() < 0.7 or not others else others
        tokens = rng.choices(pool, k=max(8, size // 3))
        weights = [0.0] * len(tokens)
        while len(tokens) < size:
            length = rng.randint(4, 24)
            start = rng.randrange(max(1, len(tokens) - length))
            span = tokens[start : start + length]
            tokens += [*span, rng.choice(pool)]
            weights += [0.0, 0.5, *[1.0] * (len(span) - 2), 0.0]
        return tokens[:size], weights[:size]

    def counted(self, rng: random.Random, size: int) -> Document:
        """``river 1 falcon 1 river 2 ...``: how often each word has come so far, the densest lesson in counting.

        Or the lists of :meth:`doubles`, as long as those, with the count behind what has come before only: that it has
        is then seen from the word alone, in a list that looks like those of which nothing but the question is scored.
        """
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) < size:
            if rng.random() < 0.5:
                entries, _ = self._some_frequent(rng, size - len(tokens))
                numbered, always = rng.random() < 0.7, False
            else:
                pool = self._things(rng, rng.randint(2, 30))
                some = rng.sample(pool, rng.randint(1, len(pool)))  # more frequent than the others
                entries = [rng.choice(some if rng.random() < 0.5 else pool) for _ in range(rng.randint(8, 60))]
                numbered, always = False, True
            stated, weighed = self._with_counts(entries, numbered=numbered, always=always)
            tokens += stated
            weights += weighed
            tokens += self.newline
            weights += [0.0]
        return tokens[:size], weights[:size]

    def _with_counts(self, entries: list[tuple[int, ...]], *, numbered: bool, always: bool) -> Document:
        """A list with the running count behind what has come before, or behind everything."""
        tokens: list[int] = []
        weights: list[float] = []
        seen = Counter[tuple[int, ...]]()
        for place, thing in enumerate(entries, 1):
            seen[thing] += 1
            before = self._number(place) if numbered else []
            count = self._encode(f" {seen[thing]}" if always else f" ({seen[thing]})" if seen[thing] > 1 else "")
            tokens += [*before, *thing, *count]
            # A number's first token, behind a word that is new, says that no count follows.
            weights += [0.0 if index else 0.3 for index in range(len(before))]
            weights += [0.0] * len(thing) + [2.0] * len(count)
        return tokens, weights

    def doubles(self, rng: random.Random, size: int) -> Document:
        """Lists in which a few words occur several times, and which those are: what counting begins with.

        Numbered and asked as in common words extraction, or bare, some with the counts written down. They are named in
        the order in which they came for the second time: in any order each answer would be one of ten, to be told apart
        from the others by nothing.
        """
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) < size:
            things, common = self._some_frequent(rng, size - len(tokens))
            numbered = rng.random() < 0.5
            if rng.random() < 0.25:
                stated, weighed = self._with_counts(things, numbered=numbered, always=False)
            else:
                stated = self._list(things, numbered)
                weighed = [LIGHT] * len(stated)
            lines = self._encode(cwe.ASK.format(n=len(common)) if numbered else "most common:")
            reply = self._list(second_times(things), numbered)
            words = {word for thing in common for word in thing}
            tokens += stated + self.newline + lines + reply + self.newline
            weights += [*weighed, *[LIGHT] * (1 + len(lines))]
            weights += [*(FIRST if token in words else 0.3 for token in reply), 0.3]
        return tokens[:size], weights[:size]

    def _some_frequent(self, rng: random.Random, size: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """A shuffled list of about ``size`` tokens at most in which some things occur several times, and those."""
        room = size // 5  # an entry takes two to six tokens
        wanted, times = rng.randint(1, 10), rng.randint(2, 8)
        if wanted * times > room:
            wanted, times = rng.randint(1, 6), rng.randint(2, 5)
        # Short ones have more answers among their tokens; the longest are as long as the task's own.
        most = rng.choice((12, 12, 12, 40, 160, 600))
        drawn = self._things(rng, wanted + rng.randint(2, max(3, min(most, room - wanted * times))))
        entries = drawn[:wanted] * times + drawn[wanted:]
        rng.shuffle(entries)
        return entries, drawn[:wanted]

    def _things(self, rng: random.Random, count: int) -> list[tuple[int, ...]]:
        """Different words that a list may name, or names of two words: so that no word is never an answer.

        Or words and hyphenated names, as in the task, whose words run out in long lists.
        """
        kind = rng.random()
        if kind < 0.5:
            words = count if kind < 0.1 else rng.randint(0, count)
            names = draw_names(rng, count - words, held_out=self.held_out)
            things = [(word,) for word in rng.sample(self.known, words)]
            things += [tuple(self._encode(f" {name}")) for name in names]
            rng.shuffle(things)
            return things
        found: dict[tuple[int, ...], None] = {}
        while len(found) < count:
            found[self._pair_name(rng, 2, self.listed)] = None
        return list(found)

    def handed(self, rng: random.Random, size: int) -> Document:
        """Values handed on from one name to the next, and who has them: variable tracking without its noise.

        Worded as there, or bare, with names of one word to begin with; several chains shuffled into one another, each
        asked for about once.
        """
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) < size:
            worded = rng.random() < 0.5
            chains, letters = rng.randint(1, 3 if size < 128 else 5), rng.choice((3, 5, 5))
            sizes = [rng.randint(1, 5) for _ in range(chains)]
            if worded or rng.random() < 0.4:
                codes = draw_codes(rng, sum(sizes), string.ascii_uppercase, letters, held_out=self.held_out)
            else:
                codes = draw_words(rng, sum(sizes), held_out=self.held_out)
            names = [[codes.pop() for _ in range(count)] for count in sizes]
            values = [str(value) for value in rng.sample(range(10_000, 100_000), chains)]
            word, form = ("VAR ", vt.ASK) if worded else ("", "{v} has")
            chained = [vt.assignments(chain, value, word) for chain, value in zip(names, values, strict=True)]
            lines = vt.interleaved(rng, chained)
            noise = rng.random() < 0.4
            for line in lines:
                stated = self._encode(f"{line}\n") + (self.noise[0] if noise and rng.random() < 0.4 else [])
                tokens += stated
                weights += [LIGHT] * len(stated)
            for number in rng.choices(range(chains), k=1 if worded else chains + 1):
                ask = self._encode(form.format(v=values[number], n=len(names[number])))
                tokens += ask
                weights += [LIGHT] * len(ask)
                for name in names[number]:
                    first, *others = self._encode(f" {name}")
                    tokens += [first, *others]
                    weights += [FIRST, *[ANSWER] * len(others)]
                tokens += self.newline
                weights += [1.0]
        return tokens[:size], weights[:size]

    def codes(self, rng: random.Random, size: int) -> Document:
        """Coded text in which some codes are frequent, and which those are: frequent words extraction, and smaller."""
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) < size:
            room = max(24, min(size - len(tokens), 400 if rng.random() < 0.3 else 120)) // 4
            wanted = 3 if rng.random() < 0.6 else rng.randint(1, 3)
            length = rng.randint(2, 6)
            # Frequencies that fall off by a factor of 1.4 to 3 a rank: no two of those wanted, nor the next, are equal.
            factor, counts = rng.uniform(1.4, 3.0), [2]
            while len(counts) < wanted or (len(counts) < wanted + 2 and sum(counts) * factor < room):
                counts = [max(round(count * factor), count + 1) for count in counts] + [2]
            counts += [1] * rng.randint(1, max(2, (room - sum(counts)) // 2))
            dots = rng.randint(0, sum(counts)) if rng.random() < 0.6 else 0
            drawn = draw_codes(rng, len(counts), string.ascii_lowercase, length, held_out=self.held_out)
            text = [code for code, count in zip(drawn, counts, strict=True) for _ in range(count)] + ["..."] * dots
            rng.shuffle(text)
            stated = self._encode(f" {' '.join(text)}\n")
            ask = self._encode(fwe.ASK if wanted == 3 and rng.random() < 0.4 else f"{wanted} most frequent:")
            tokens += stated + ask
            weights += [LIGHT] * (len(stated) + len(ask))
            for place, code in enumerate(drawn[:wanted]):
                first, *rest = self._encode(f" {code}")
                tokens += [first, *rest, *self._encode("." if place == wanted - 1 else ",")]
                weights += [FIRST, *[ANSWER] * len(rest), 0.3]
            tokens += self.newline
            weights += [0.3]
        return tokens[:size], weights[:size]

    def _list(self, things: list[tuple[int, ...]], numbered: bool) -> list[int]:
        """Words, or `` 1. word 2. word``."""
        if not numbered:
            return [word for thing in things for word in thing]
        return [token for n, thing in enumerate(things, 1) for token in (*self._number(n), *thing)]

    def _number(self, n: int) -> list[int]:
        while len(self.numbers) < n:
            self.numbers.append(self._encode(f" {len(self.numbers) + 1}."))
        return self.numbers[n - 1]

    def needles(self, rng: random.Random, size: int) -> Document | None:
        """Facts of one form, alone, in code or in noise, and questions about them, drawn with replacement.

        Were each asked once, the answer could be had by elimination, and the model would learn that instead of telling
        names apart.
        """
        statement, question, close = rng.choice(_FORMS)
        draw_keys, draw_value = self._keys(rng), self._values(rng)
        probe = self._question(question, "amber-falcon", draw_value(), close)
        cost = len(self._encode(statement.format(k="amber-falcon", v=draw_value())))
        questions = max(1, min(24, int(rng.uniform(0.1, 0.5) * size / len(probe[0]))))
        room = size - questions * int(1.2 * len(probe[0]))
        around = rng.random()  # below 0.55 nothing but facts, else code or noise between them
        most = max(1, int(room / (1.2 * cost)))
        count = most if around < 0.55 else rng.randint(1, max(1, min(most // 2, 24)))
        keys = draw_keys(count)
        if room < cost or len(keys) < count:
            return None
        facts = [(key, draw_value()) for key in keys]
        stated = [self._encode(statement.format(k=key, v=value)) for key, value in facts]
        asked = [self._question(question, *rng.choice(facts), close) for _ in range(questions)]
        left = size - sum(map(len, stated)) - sum(len(tokens) for tokens, _ in asked)
        between: list[tuple[list[int], float]] = []
        if left > 0 and around >= 0.55:
            lines = self.filler(rng, left) if around < 0.8 else self.noise * (left // len(self.noise[0]) + 1)
            weight = 0.5 if around < 0.8 else LIGHT
            while lines and left > 0:
                line = lines.pop(0)[:left]
                between.append((line, weight))
                left -= len(line)
        for tokens in stated:
            between.insert(rng.randrange(len(between) + 1), (tokens, LIGHT))
        parts = [(tokens, [weight] * len(tokens)) for tokens, weight in between] + asked
        tokens = [token for part, _ in parts for token in part]
        weights = [weight for _, part in parts for weight in part]
        return (tokens, weights) if len(tokens) <= size else None

    def _pair_name(self, rng: random.Random, width: int, pool: list[int]) -> tuple[int, ...]:
        """``width`` words of the pool that are together a name of this side."""
        for tried in itertools.count():
            words = rng.choices(pool if tried < 8 else self.words, k=width)  # a small pool may have none of this side
            if is_held_out_name(self.tokenizer.decode(words).strip()) == self.held_out:
                return tuple(words)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def _question(self, form: str, key: str, value: str, close: str) -> Document:
        text = form.format(k=key)
        answer = f"{value}{close}" if text.endswith('"') else f" {value}{close}"
        ask, reply = self._encode(text), self._encode(answer)
        end = len(self._encode(close))
        weights = [FIRST, *[ANSWER] * (len(reply) - 1 - end), *[0.3] * end]
        return ask + reply, [LIGHT] * len(ask) + weights

    def _keys(self, rng: random.Random) -> Callable[[int], list[str]]:
        kind, held_out = rng.random(), self.held_out
        if kind < 0.15:  # in two words: the nouns that no training name consists of alone are met after a space too
            return lambda count: [name.replace("-", " ") for name in draw_names(rng, count, held_out=held_out)]
        if kind < 0.3:
            return lambda count: draw_names(rng, count, held_out=held_out)
        if kind < 0.5:  # names that share a word with their neighbours: the other has to be told as well
            return lambda count: self._alike(rng, count)
        if kind < 0.65:
            return lambda count: [fact.name for fact in recall.draw_facts(rng, min(count, 48), held_out=held_out)]
        if kind < 0.8:
            return lambda count: draw_words(rng, count, held_out=held_out)
        if kind < 0.9:
            return lambda count: draw_codes(rng, count, string.ascii_uppercase, 5, held_out=held_out)
        return lambda count: [random_uuid(rng) for _ in range(count)]

    def _alike(self, rng: random.Random, count: int) -> list[str]:
        """``count`` names of few words, or fewer where there are not as many."""
        some = rng.sample(ADJECTIVES, count // 3 + 2), rng.sample(NOUNS, count // 2 + 2)
        names = [(a, n) for a in some[0] for n in some[1] if is_held_out_name(f"{a} {n}") == self.held_out]
        return ["-".join(name) for name in rng.sample(names, min(count, len(names)))]

    def _values(self, rng: random.Random) -> Callable[[], str]:
        kind = rng.random()
        digits = 7 if kind < 0.5 else 5 if kind < 0.75 else rng.randint(1, 9)
        if kind < 0.85:
            return lambda: str(rng.randint(10 ** (digits - 1), 10**digits - 1))
        if kind < 0.95:
            return lambda: draw_words(rng, 1, held_out=self.held_out)[0]
        return lambda: random_uuid(rng)
