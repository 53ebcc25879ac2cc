"""The evaluation's tasks as training text: what is asked fits, is answered, and carries the weight."""

import re

import pytest

SEEDS = range(5)


@pytest.fixture(scope="module")
def exercises(tokenizer):
    from exercises import Exercises

    return Exercises(tokenizer, held_out=False)


def answers(tokenizer, document):
    """The text of a document and each run of its tokens that is an answer."""
    from retrieval import ANSWER

    tokens, weights = document
    runs, run = [], []
    for token, weight in [*zip(tokens, weights, strict=True), (0, 0.0)]:
        if weight == ANSWER:
            run.append(token)
        elif run:
            runs.append(tokenizer.decode(run).strip())
            run = []
    return tokenizer.decode(tokens), runs


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [700, 1500])
def test_every_chain_is_asked_for_and_the_worked_example_counts(exercises, tokenizer, seed, size):
    text, runs = answers(tokenizer, exercises.one("vt", seed, size))
    source = dict(re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text))
    values = re.findall(r"the value (\d+) in the text", text)
    assert len(runs) == len(values) == len([value for value in source.values() if value.isdigit()])
    assert len(runs) > 1 or size == 700  # an example and the chain, from 1,024 tokens on
    for value, run in zip(values, runs, strict=True):
        chain = run.split()
        assert [source[name] for name in chain] == [value, *chain[:-1]]


def test_several_chains_are_among_them(exercises, tokenizer):
    counts = {len(answers(tokenizer, exercises.one("vt", seed, 900))[1]) for seed in range(12)}
    assert {1, 2} < counts


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [500, 2047])
def test_common_words_are_named_in_the_order_of_their_second_time(exercises, tokenizer, seed, size):
    text, (run,) = answers(tokenizer, exercises.one("cwe", seed, size))
    listed = re.split(r"\d+\. ", text[text.rindex("Below is") :].partition("\nQuestion")[0])[1:]
    listed = [thing.strip() for thing in listed]
    again = [thing for place, thing in enumerate(listed) if listed[:place].count(thing) == 1]
    assert again == [thing.strip() for thing in re.split(r"\d+\. ", run)[1:]]
    assert len(again) in (5, 10)


@pytest.mark.parametrize("name", ["cwe", "fwe", "niah_single_1", "niah_multikey_2", "vt", "passkey", "recall"])
@pytest.mark.parametrize("size", [600, 2047])
def test_contexts_are_as_long_as_the_room_for_a_reply_allows(exercises, name, size):
    from retrieval import ANSWER

    lengths = []
    for seed in SEEDS:
        tokens, weights = exercises.one(name, seed, size)
        assert len(tokens) == len(weights) <= size
        assert max(index for index, weight in enumerate(weights) if weight == ANSWER) >= len(tokens) - 8
        lengths.append(len(tokens))
    assert max(lengths) > 0.88 * size


@pytest.mark.parametrize("seed", range(8))
def test_needles_are_answered_by_what_the_text_says_of_their_key(exercises, tokenizer, seed):
    text, runs = answers(tokenizer, exercises.one("niah_multikey_2", seed, 1500))
    said = dict(re.findall(r"magic numbers for (\S+) is: (\d{7})\.", text))
    asked = re.findall(r"special magic number for (\S+) mentioned in the provided text is", text)
    assert len(asked) == len(runs) >= 2
    assert [f"{said[key]}." for key in asked] == runs


def test_some_numbers_begin_alike(exercises, tokenizer):
    alike = 0
    for seed in range(8):
        text, _ = answers(tokenizer, exercises.one("niah_multikey_2", seed, 1500))
        said = re.findall(r"is: (\d{7})\.", text)
        alike += len({number[:3] for number in said}) < len(said) / 2
    assert 0 < alike < 8


def test_what_has_no_room_is_none(exercises):
    assert exercises.one("cwe", 0, 40) is None
    assert exercises.one("vt", 0, 30) is None
