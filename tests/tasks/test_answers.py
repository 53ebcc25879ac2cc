"""Every answer follows from the text: an independent reader of context and question finds it."""

import json
import re
from collections import Counter

import pytest

from squeezeattention.tasks import NLL, TASKS


def needle(context, question):
    key = re.search(r"special magic (?:number|uuid) for (\S+) mentioned", question)[1]
    return re.findall(rf"^One of the special magic (?:number|uuid)s for {key} is: (\S+)\.$", context, re.M)


def variable_tracking(context, question):
    """Follow the assignments of the last problem (a worked example may come first)."""
    values = {}
    for name, source in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", context, re.M):
        values[name] = values.get(source, source)
    wanted = re.search(r"assigned the value (\d+)", question)[1]
    return [name for name, value in values.items() if value == wanted]


def common_words(context, question):
    wanted = int(re.search(r"the (\d+) most common", question)[1])
    words = re.findall(r"\d+\. (\S+)", context.rstrip("\n").rpartition("\n")[2])
    return [word for word, _ in Counter(words).most_common(wanted)]


def frequent_words(context, question):
    words = Counter(context.partition("coded words. ")[2].split())
    return [word for word, _ in words.most_common(4) if word != "..."]


def recall(context, question):
    return re.findall(rf"^{question.replace('recall', 'remember')} (\d+)$", context, re.M)


def facts(context, question):
    """Look up each person that the question names, in its order."""
    thing, people = re.search(r"(?:What|On which day) (?:is|are) the (.+?)s? of (.+)\?", question).groups()
    values = []
    for person in re.split(r", | and ", people):
        (value,) = re.findall(rf"The {thing} of {person} is (?:on )?([^.]+)\. ", context)
        values.append(value)
    return [" and ".join([", ".join(values[:-1]), values[-1]]) if values[1:] else values[0]]


def conversation(context, question):
    """What the user said of this person."""
    thing, person = re.search(r"What is the (.+) of (.+)\?", question).groups()
    return re.findall(rf"^User: The {thing} of {person} is (\d+)\. Here is part \d+\.$", context, re.MULTILINE)


def passkey(context, question):
    return re.findall(r"^The pass key is (\d+)\. Remember it\. \1 is the pass key\.$", context, re.M)


def key_value(context, question):
    return [json.loads(context.partition("JSON data:\n")[2])[re.search(r'Key: "(\S+)"', question)[1]]]


def ledger(context, question):
    balances, lines = {}, []
    for number, name, change in re.findall(r"^(\d+)\. (\S+) ([+-]\d+)$", context, re.M):
        balances[name] = balances.get(name, 0) + int(change)
        assert 0 <= balances[name] <= 99
        lines.append(f"{number}. {name} {balances[name]}")
    return lines + [f"last {name} {balance}" for name, balance in balances.items()]


def track(context, question):
    values, lines = {}, []
    for number, name, source in re.findall(r"^(\d+)\. (\S+) = (\S+)$", context, re.M):
        values[name] = values.get(source, source)
        lines.append(f"{number}. {name} {values[name]}")
    return lines


def copy(context, question):
    return context.splitlines()[1:]


def sort(context, question):
    numbers = sorted(map(int, context.splitlines()[1:]))
    return [f"{place}. {number}" for place, number in enumerate(numbers, 1)]


def several_needles(context, question):
    keys = re.findall(r"[a-z]+-[a-z]+", question.split("mentioned")[0])
    pairs = re.findall(r"^One of the special magic numbers for (\S+) is: (\d+)\.$", context, re.MULTILINE)
    return [value for key, value in pairs if key in keys]


READERS = {
    "facts": facts,
    "conversation": conversation,
    "recall": recall,
    "niah_single_1": needle,
    "niah_multikey_2": needle,
    "niah_multikey_3": needle,
    "niah_multivalue": several_needles,
    "niah_multiquery": several_needles,
    "vt": variable_tracking,
    "cwe": common_words,
    "fwe": frequent_words,
    "passkey": passkey,
    "kv_retrieval": key_value,
    "ledger": ledger,
    "track": track,
    "copy": copy,
    "sort": sort,
}
ORDERED = {"ledger", "track", "copy", "sort"}


@pytest.mark.parametrize("length", [600, 1500, 4200])
@pytest.mark.parametrize("name", [name for name in TASKS if TASKS.factory(name).metric != NLL])
def test_answers_can_be_read_off_the_context(make, counters, name, length):
    task = make(name)
    for counter, index in (("words", 0), ("words", 1), ("embedded", 0), ("embedded", 1)):
        sample = task.sample(counters[counter], length, 7, index)
        for question in sample.questions:
            found = READERS[name](sample.context, question.text)
            assert sorted(found) == sorted(question.answers)
            if name in ORDERED:
                assert found == list(question.answers)
        texts = [question.text for question in sample.questions]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("kind", ["number", "name", "date", "saying"])
def test_facts_of_every_kind_can_be_read_off_the_text(counters, kind, together, tmp_path):
    (tmp_path / "own.txt").write_text("A short text. It has two sentences!\n\nAnd a third, which is longer than those.")
    for path in (None, tmp_path / "own.txt"):
        task = TASKS.create("facts", kind=kind, together=together, most=5, path=path)
        sample = task.sample(counters["embedded"], 700, 1, 0)
        assert len(sample.questions) == 5
        for question in sample.questions:
            assert facts(sample.context, question.text) == list(question.answers)
