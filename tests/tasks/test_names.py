"""Evaluation and training share no name."""

import random
import re

import pytest

from squeezeattention.errors import ConfigError
from squeezeattention.tasks import TASKS, names
from squeezeattention.tasks.recall import is_held_out_name
from squeezeattention.tasks.words import ADJECTIVES, NOUNS, VERBS

#: Where the names stand in a context, by task; tasks that are not here have random numbers only.
NAMES = {
    "recall": r"^# remember (\w+ \w+) \d{5}$",
    "niah_single_1": r"magic numbers for (\S+) is:",
    "niah_multikey_2": r"magic numbers for (\S+) is:",
    "vt": r"^VAR (\w+) =",
    "cwe": r"\d+\. (\S+)",
    "fwe": r"\b([a-z]{6})(?= )",
    "ledger": r"^\d+\. (\S+) [+-]",
    "track": r"^\d+\. (\S+) =",
    "copy": r"^\d+\. (\S+)$",
}


@pytest.mark.parametrize("name", list(NAMES))
def test_no_name_of_an_evaluation_is_trained_on(counters, name):
    found = {}
    for held_out in (True, False):
        task = TASKS.create(name, held_out=held_out)
        texts = [task.sample(counters["words"], 1200, seed, 0).context for seed in range(6)]
        if name == "fwe":
            texts = [text.partition("coded words. ")[2] for text in texts]
        found[held_out] = {match for text in texts for match in re.findall(NAMES[name], text, re.M)}
        assert {is_held_out_name(match.replace("-", " ")) for match in found[held_out]} == {held_out}
    assert not found[True] & found[False]
    assert min(map(len, found.values())) >= 6


@pytest.mark.parametrize("name", ["recall", "code"])
def test_modules_are_split_too(counters, name):
    evaluated, trained = (TASKS.create(name, held_out=held_out) for held_out in (True, False))
    texts = [task.sample(counters["words"], 400, 0, 0).context for task in (evaluated, trained)]
    assert texts[0] != texts[1]


def test_word_lists_are_plain_and_without_repeats():
    for words in (ADJECTIVES, NOUNS, VERBS):
        assert len(set(words)) == len(words)
        assert list(words) == sorted(words)
        assert all(re.fullmatch("[a-z]{2,10}", word) for word in words)


def test_there_are_enough_names_to_draw_from():
    held_out = sum(is_held_out_name(f"{adjective} {noun}") for adjective in ADJECTIVES for noun in NOUNS)
    assert held_out >= 2 * names.MOST_NAMES
    with pytest.raises(ConfigError, match="at most 20,000 names"):
        names.draw_names(random.Random(0), names.MOST_NAMES + 1, held_out=True)
    with pytest.raises(ConfigError, match="nouns for"):
        names.draw_nouns(random.Random(0), 1_000, held_out=True)


@pytest.mark.parametrize("held_out", [True, False])
def test_names_differ_and_words_go_over_into_names(held_out):
    rng = random.Random(0)
    plain = names.plain_words(held_out=held_out)
    assert 300 < len(plain) < 1_400
    drawn = names.draw_words(rng, len(plain) + 50, held_out=held_out)
    assert len(set(drawn)) == len(drawn) == len(plain) + 50
    assert set(drawn[: len(plain)]) == set(plain)
    assert all("-" in name for name in drawn[len(plain) :])
    assert len(set(names.draw_codes(rng, 300, "ABCD", 6, held_out=held_out))) == 300
