"""What the training text says is true: every answer in it follows from the text before it."""

import itertools
import random
import re
from collections import Counter

import pytest

SEEDS = range(6)


@pytest.fixture(scope="module")
def retrieval(tokenizer):
    from retrieval import Retrieval

    return Retrieval(tokenizer, lambda rng, size: [[0] * size], held_out=False)


def drawn(retrieval, tokenizer, kind, seed, size=600):
    """Text of a document that has answers."""
    from retrieval import ANSWER

    tokens, weights = getattr(retrieval, kind)(random.Random(seed), size)
    assert len(tokens) == len(weights) <= size
    assert max(weights) >= ANSWER
    return tokenizer.decode(tokens)


@pytest.mark.parametrize("seed", SEEDS)
def test_chains_of_variables_are_followed_to_their_value(retrieval, tokenizer, seed):
    source, asked = {}, 0
    for line in drawn(retrieval, tokenizer, "handed", seed).splitlines()[:-1]:  # the last one may be cut off
        if found := re.match(r"(?:VAR )?([A-Za-z]+) = (?:VAR )?(\w+)$", line):
            source[found[1]] = found[2]
        elif found := re.match(r"(?:Question: .* the value )?(\d{5})(?:, they are:| has) ([A-Za-z ]+)$", line):
            chain = found[2].split()
            assert [source[name] for name in chain] == [found[1], *chain[:-1]]
            assert source.keys() >= set(chain)
            assert not {n for n in source if source[n] == chain[-1]}
            asked += 1
    assert asked


@pytest.mark.parametrize("seed", SEEDS)
def test_the_codes_asked_for_are_the_most_frequent_in_order(retrieval, tokenizer, seed):
    lines = drawn(retrieval, tokenizer, "codes", seed).splitlines()[:-1]
    asked = 0
    for text, question in itertools.pairwise(lines):
        if not (found := re.search(r"(?:most frequent| words are): ([a-z, ]+)\.$", question)):
            continue
        counts = Counter(word for word in text.split() if word != "...")
        answer = found[1].split(", ")
        assert [word for word, _ in counts.most_common(len(answer))] == answer
        assert len({counts[word] for word in answer} | {0}) == len(answer) + 1  # no two equally often
        assert max([count for word, count in counts.items() if word not in answer], default=0) < counts[answer[-1]]
        asked += 1
    assert asked


@pytest.mark.parametrize("seed", SEEDS)
def test_doubles_are_what_occurs_more_than_once(retrieval, tokenizer, seed):
    asked = 0
    for _ in range(4):  # documents
        text = drawn(retrieval, tokenizer, "doubles", seed)
        for stated, answer in re.findall(r"(.*)\n(?:Question: .* list are):(.*)\n", text):
            things = [re.sub(r" \(\d+\)", "", thing).strip() for thing in re.split(r"\d+\.", stated)[1:]]
            again = [thing for place, thing in enumerate(things) if things[:place].count(thing) == 1]
            assert again == [thing.strip() for thing in re.split(r"\d+\.", answer)[1:]]
            asked += 1
        seed += 100
    assert asked


@pytest.mark.parametrize("seed", SEEDS)
def test_running_counts_are_right(retrieval, tokenizer, seed):
    text, counted = drawn(retrieval, tokenizer, "counted", seed), 0
    for line in text.splitlines()[:-1]:
        readings = [_entries(line, width) for width in (1, 2)]  # words and hyphenated names, or names of two words
        assert any(entries and _counts_are_right(entries) for entries in readings), line
        counted += 1
    assert counted


def _entries(line: str, width: int) -> list[tuple[str, str]] | None:
    """(thing, count written behind it) of a line, ``None`` unless all of it reads as things of ``width`` words."""
    thing = " ".join(["[A-Za-z-]+"] * width)
    form = rf"(?: \d+\.)? ({thing})((?: \d+(?!\d*\.)| \(\d+\))?)"
    return re.findall(form, line) if re.fullmatch(f"(?:{form})+", line) else None


def _counts_are_right(entries: list[tuple[str, str]]) -> bool:
    seen = Counter()
    marked = any("(" in count or not count for _, count in entries)
    for thing, count in entries:
        seen[thing] += 1
        wanted = f" {seen[thing]}" if not marked else f" ({seen[thing]})" if seen[thing] > 1 else ""
        if count != wanted:
            return False
    return True


def test_names_alike_share_a_word_and_are_of_one_side(retrieval):
    from squeezeattention.tasks.recall import is_held_out_name

    for seed in SEEDS:
        names = retrieval._alike(random.Random(seed), 30)
        assert len(set(names)) == 30
        assert not any(is_held_out_name(name.replace("-", " ")) for name in names)
        assert max(Counter(word for name in names for word in name.split("-")).values()) >= 3


def test_a_pool_without_a_name_of_this_side_does_not_hang(tokenizer):
    from retrieval import Retrieval

    held_out = Retrieval(tokenizer, lambda rng, size: [[0] * size], held_out=True)
    word = next(w for w in held_out.words if w in held_out.known)
    assert len(held_out._pair_name(random.Random(0), 1, [word])) == 1
