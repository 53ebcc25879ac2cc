"""Each task has the structure that its definition says: places, counts, chains, frequencies."""

import itertools
import re
from collections import Counter

import pytest

from squeezeattention.errors import ConfigError, InputError
from squeezeattention.tasks import TASKS, corpus
from squeezeattention.tasks.noise import FILLER

INDICES = range(6)


@pytest.fixture
def samples(make, counters):
    def samples(name, length=2048, **options):
        task = make(name, **options)
        return [task.sample(counters["words"], length, 0, index) for index in INDICES]

    return samples


def test_single_needle_is_one_line_among_filler_at_many_depths(samples):
    lines_seen = set()
    for sample in samples("niah_single_1"):
        head, *lines = sample.context.splitlines()
        key, value = sample.details["key"], sample.details["value"]
        assert "hidden within the following text" in head
        assert lines[sample.details["line"]] == f"One of the special magic numbers for {key} is: {value}."
        assert len(lines) == sample.details["lines"]
        assert re.fullmatch(r"[a-z]+-[a-z]+", key)
        assert re.fullmatch(r"[1-9]\d{6}", value)
        assert sample.context.count(key) == sample.context.count(value) == 1
        filler = [line for number, line in enumerate(lines) if number != sample.details["line"]]
        assert set(filler[:-1]) == {" ".join(FILLER)}
        assert " ".join(FILLER).startswith(filler[-1])
        lines_seen.add(sample.details["line"])
    assert len(lines_seen) >= len(INDICES) - 1


@pytest.mark.parametrize(("name", "keys"), [("niah_multivalue", 1), ("niah_multiquery", 4)])
def test_several_needles_are_lines_among_filler_and_all_are_asked_for(samples, name, keys):
    for sample in samples(name):
        _, *lines = sample.context.splitlines()
        found = {number: line for number, line in enumerate(lines) if line.startswith("One of")}
        assert list(found) == sample.details["lines"]
        pairs = [
            re.fullmatch(r"One of the special magic numbers for (\S+) is: (\d{7})\.", line).groups()
            for line in found.values()
        ]
        assert pairs == list(zip(sample.details["keys"], sample.details["values"], strict=True))
        assert len(set(sample.details["keys"])) == keys
        assert sorted(sample.questions[0].answers) == sorted(value for _, value in pairs)
        assert all(key in sample.questions[0].text for key, _ in pairs)
        assert set([line for number, line in enumerate(lines) if number not in found][:-1]) == {" ".join(FILLER)}


@pytest.mark.parametrize("option", ["values", "queries"])
def test_one_needle_is_not_several(option):
    with pytest.raises(ConfigError, match=f"{option} must be a whole number of at least 2"):
        TASKS.create({"values": "niah_multivalue", "queries": "niah_multiquery"}[option], **{option: 1})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("niah_multikey_2", r"[a-z]+-[a-z]+", r"[1-9]\d{6}"),
        ("niah_multikey_3", r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-\w{12}"),
    ],
)
def test_the_haystack_is_needles_with_keys_of_their_own(samples, name, key, value):
    for sample in samples(name):
        what = "number" if name.endswith("2") else "uuid"
        lines = sample.context.splitlines()[1:]
        found = [
            re.fullmatch(rf"One of the special magic {what}s for ({key}) is: ({value})\.", line).groups()
            for line in lines
        ]
        assert len({key for key, _ in found}) == len(found) > 50
        assert found[sample.details["line"]] == (sample.details["key"], sample.details["value"])


def test_variables_hand_one_value_on_in_order(samples):
    for sample in samples("vt", length=700):
        (chain,), (value,) = sample.details["chains"], sample.details["values"]
        lines = sample.context.partition("\n\n")[2].splitlines()
        assert [lines[number] for number in sample.details["lines"]] == [
            f"VAR {chain[0]} = {value}",
            *(f"VAR {b} = VAR {a}" for a, b in itertools.pairwise(chain)),
        ]
        assert sample.questions[0].answers == tuple(chain)
        assert len(chain) == 5
        assert all(re.fullmatch("[A-Z]{5}", name) for name in chain)
        assert not sample.details["example"]


def test_chains_are_mixed_and_each_keeps_its_order(samples):
    mixed = 0
    for sample in samples("vt", length=2000, chains=3, hops=2):
        assert sample.details["example"]
        place = {name: sample.context.index(f"VAR {name} =") for chain in sample.details["chains"] for name in chain}
        chains = [[place[name] for name in chain] for chain in sample.details["chains"]]
        assert all(chain == sorted(chain) for chain in chains)
        mixed += any(a[0] < b[0] < a[-1] for a, b in itertools.permutations(chains, 2))
        assert len(set(sample.details["values"])) == 3
        assert len(sample.questions[0].answers) == 3
        # The example's own variables are no answers.
        example = sample.context.partition("Question:")[0]
        assert not any(name in example for name in sample.questions[0].answers)
    assert mixed


@pytest.mark.parametrize(
    ("length", "wanted", "common", "uncommon"), [(512, 5, 4, 1), (1024, 10, 6, 1), (4096, 10, 30, 3)]
)
def test_common_words_are_common_and_the_others_are_not(samples, length, wanted, common, uncommon):
    for sample in samples("cwe", length=length):
        entries = re.findall(r"(\d+)\. (\S+)", sample.context.rstrip("\n").rpartition("\n")[2])
        assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
        counts = Counter(word for _, word in entries)
        assert {counts[word] for word in sample.questions[0].answers} == {common}
        assert Counter(counts.values()) == {common: wanted, uncommon: sample.details["words"] - wanted}
        assert bool(sample.details["example"]) == (length >= 1024) == (sample.context.count("Answer:") == 1)
        if length >= 1024:
            example = re.findall(r"\d+\. (\S+)", sample.context.splitlines()[1])
            assert not counts.keys() & set(example)


def test_frequencies_of_coded_words_fall_off_as_a_zeta_distribution(samples):
    for sample in samples("fwe", length=4096):
        words = Counter(sample.context.partition("coded words. ")[2].split())
        counts = [count for _, count in words.most_common()]
        assert counts == sample.details["counts"]
        assert words.most_common(1)[0][0] == "..."
        assert [words[word] for word in sample.questions[0].answers] == counts[1:4]
        assert counts[1] > counts[2] > counts[3] > counts[4]
        assert all(re.fullmatch("[a-z]{6}", word) for word in words if word != "...")
        for rank in (2, 3, 4):  # alpha is 2
            assert counts[rank - 1] * rank**2 == pytest.approx(counts[0], rel=0.03)


def test_the_pass_key_stands_in_one_line_among_filler(samples):
    for sample in samples("passkey"):
        key = sample.questions[0].answers[0]
        lines = sample.context.splitlines()[1:]
        assert len(lines) == sample.details["lines"]
        assert [number for number, line in enumerate(lines) if key in line] == [sample.details["line"]]


def test_several_values_of_one_object_are_asked_for(samples):
    for sample in samples("kv_retrieval", questions=6):
        assert len(sample.questions) == 6
        assert len({question.answers for question in sample.questions}) == 6
        assert all(sample.context.count(question.answers[0]) == 1 for question in sample.questions)
    assert len(TASKS.create("kv_retrieval", questions=6).sample(lambda text: len(text) // 4, 100, 0, 0).questions) < 6


@pytest.mark.parametrize(("length", "facts"), [(60, 1), (256, 2), (1024, 10), (4096, 16)])
def test_recall_has_a_fact_for_every_hundred_tokens(make, counters, length, facts):
    sample = make("recall").sample(counters["words"], length, 0, 0)
    assert len(sample.questions) == len(re.findall(r"^# remember \w+ \w+ \d{5}$", sample.context, re.M)) == facts
    assert sample.details["source"] in dict(corpus.modules(held_out=True))
    assert {question.text: question.answers[0] for question in sample.questions} == {
        f"# recall {name}": value for name, value in sample.details["facts"].items()
    }
    assert sample.context.endswith("\n")


def test_balances_hang_on_what_was_written_before(samples):
    for sample in samples("ledger"):
        count, accounts = sample.details["operations"], sample.details["accounts"]
        answers = sample.questions[0].answers
        assert len(answers) == count + len(accounts)
        # What a line needs beyond its operation is the account's line before, often far back.
        names = [line.split()[1] for line in answers[:count]]
        gaps = [n - max(i for i in range(n) if names[i] == names[n]) for n in range(4, count)]
        assert max(gaps) >= 10
        # Copying the operation's own number is rarely right.
        changes = re.findall(r"([+-]\d+)$", sample.context, re.M)
        same = sum(int(change) == int(line.split()[2]) for change, line in zip(changes, answers, strict=False))
        assert same / count < 0.15


def test_assignments_keep_changing_values(samples):
    for sample in samples("track"):
        count, numbers = sample.details["assignments"], sample.details["numbers"]
        assert 0.15 < numbers / count < 0.4
        state, distinct = {}, []
        for line in sample.questions[0].answers:
            _, name, value = line.split()
            state[name] = value
            distinct.append(len(set(state.values())))
        assert sum(distinct) / len(distinct) > 2  # they do not all become one


def test_an_unsorted_or_shifted_list_scores_next_to_nothing(samples):
    from squeezeattention.metrics import METRICS

    metric = METRICS.factory("lines_in_order")
    for sample in samples("sort"):
        given = sample.context.splitlines()[1:]
        assert len(given) == sample.details["items"] > 500
        unsorted = "\n".join(f"{place}. {number}" for place, number in enumerate(given, 1))
        assert metric(unsorted, sample.questions[0].answers) < 0.02
        assert metric(sample.context, sample.questions[0].answers) == 0
    for sample in samples("copy"):
        lines = sample.questions[0].answers
        assert metric("\n".join(lines[1:]), lines) == pytest.approx(1 - 1 / len(lines))


def test_context_and_continuation_are_one_piece_of_the_text(samples, text_file):
    text = text_file.read_text(encoding="utf-8")
    starts = set()
    for sample in samples("text_file"):
        start = sample.details["start"]
        assert text[start : start + sample.details["chars"]] == sample.context + sample.continuation
        assert sample.context.endswith("\n")
        assert start == 0 or text[start - 1] == "\n"
        assert len(sample.continuation) <= 2_000
        starts.add(start)
    assert len(starts) == len(INDICES)
    held_out = "".join(text for _, text in corpus.modules(held_out=True))
    for sample in samples("code", length=512):
        assert 0.1 < len(sample.continuation) / sample.details["chars"] <= 0.25
        assert sample.context[:200] in held_out


def test_text_files_that_do_not_do(tmp_path, counters):
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        TASKS.create("text_file", path=tmp_path / "nowhere.txt")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe" * 500)
    with pytest.raises(InputError, match="UTF-8"):
        TASKS.create("text_file", path=tmp_path / "bytes")
    (tmp_path / "short").write_text("short")
    with pytest.raises(InputError, match="200"):
        TASKS.create("text_file", path=tmp_path / "short")
    (tmp_path / "medium").write_text("one two three\n" * 40)
    with pytest.raises(ConfigError, match="120 tokens"):
        TASKS.create("text_file", path=tmp_path / "medium").sample(counters["words"], 256, 0, 0)


def test_a_library_without_sources_is_an_error(monkeypatch, counters):
    monkeypatch.setattr(corpus, "modules", lambda **options: ())
    with pytest.raises(InputError, match="no source files"):
        TASKS.create("recall").sample(counters["words"], 256, 0, 0)
