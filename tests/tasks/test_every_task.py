"""What holds for every registered task, whatever it is: size, determinism, answers that can be had."""

import dataclasses
import json

import pytest

from squeezeattention.errors import ConfigError, UnknownNameError
from squeezeattention.metrics import METRICS
from squeezeattention.tasks import NLL, TASKS, resolve_task
from squeezeattention.tasks.generated import largest

LENGTHS = (256, 512, 1024, 2048, 4096)
#: A unit of theirs, a pair of uuids, may be more than 0.15 of a short context.
COARSE = {"niah_multikey_3", "kv_retrieval"}


def cost(sample, count):
    after = [question.text for question in sample.questions] or [sample.continuation]
    return count(sample.context) + max(map(count, after))


@pytest.mark.parametrize("counter", ["words", "embedded"])
@pytest.mark.parametrize(
    ("name", "length"), [(name, length) for name in TASKS for length in LENGTHS if name not in COARSE or length > 256]
)
def test_a_sample_fills_its_length_and_no_more(make, counters, name, length, counter):
    count, task = counters[counter], make(name)
    least = 0.6 if name in COARSE and length == 512 else 0.85
    for index in range(3):
        assert least * length <= cost(task.sample(count, length, 0, index), count) <= length


@pytest.mark.parametrize("name", list(TASKS))
def test_long_samples_take_few_counts(make, name):
    calls = []

    def count(text):
        calls.append(text)
        return len(text) // 8  # the file of the tests has room for 16,384 of these

    sample = make(name).sample(count, 16_384, 0, 0)
    assert sum(len(text) > 1_000 for text in calls) <= 30
    assert cost(sample, count) >= 0.98 * 16_384


@pytest.mark.parametrize("name", list(TASKS))
def test_same_key_same_sample_and_another_key_another(make, counters, name):
    count = counters["words"]
    first = make(name).sample(count, 512, 3, 1)
    assert first == make(name).sample(count, 512, 3, 1)
    assert first.id == f"{name}/512/3/1"
    for other in ((512, 3, 2), (512, 4, 1), (600, 3, 1)):
        assert make(name).sample(count, *other).context != first.context


@pytest.mark.parametrize("name", list(TASKS))
def test_kind_metric_and_details_are_what_base_says(make, counters, name):
    task = make(name)
    sample = task.sample(counters["words"], 600, 0, 0)
    assert (task.name, sample.task, sample.length) == (name, name, 600)
    assert task.summary
    assert "\n" not in task.summary
    assert json.loads(json.dumps(sample.details)) == sample.details
    assert (task.metric == NLL) == (sample.continuation is not None) == (not sample.questions)
    if task.metric == NLL:
        assert sample.continuation
    else:
        assert task.metric in METRICS


@pytest.mark.parametrize("name", list(TASKS))
def test_a_reply_is_right_has_room_and_nothing_else_is(make, counters, name):
    task, count = make(name), counters["embedded"]
    sample = task.sample(count, 1024, 0, 0)
    for question in sample.questions:
        metric = METRICS.factory(task.metric)
        assert metric(question.reply, question.answers) == 1.0
        assert metric("", question.answers) == 0.0
        assert metric(question.text, question.answers) < 0.2
        assert metric(sample.context, question.answers) < 1.0 or task.metric == "string_match_all"
        assert count(question.reply) < question.max_new_tokens
        assert not question.text.endswith(" ")  # a trailing blank would split the answer's first token
    # Another sample's reply is as good as a guess.
    other = task.sample(count, 1024, 0, 1)
    for question, wrong in zip(sample.questions, other.questions, strict=False):
        assert METRICS.factory(task.metric)(wrong.reply, question.answers) < 0.3


@pytest.mark.parametrize("name", list(TASKS))
def test_too_short_a_length_is_an_error_that_says_how_much_is_needed(make, counters, name):
    for length in (0, 5):
        with pytest.raises(ConfigError, match=rf"{name}.* needs at least \d+ tokens"):
            make(name).sample(counters["words"], length, 0, 0)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_part_for_training_can_be_drawn_too(counters, name):
    count = counters["words"]
    evaluated, trained = (TASKS.create(name, held_out=held_out) for held_out in (True, False))
    assert (evaluated.held_out, trained.held_out) == (True, False)
    assert trained.sample(count, 512, 0, 0).task == name


def test_resolving():
    task = resolve_task("vt", hops=2)
    assert resolve_task(task) is task
    with pytest.raises(ConfigError, match="go with a task's name"):
        resolve_task(task, hops=3)
    with pytest.raises(ConfigError, match="must be a name or a Task"):
        resolve_task(3)
    with pytest.raises(UnknownNameError, match="niah_single_1"):
        resolve_task("niah_single1")
    with pytest.raises(ConfigError, match="cannot take"):
        resolve_task("text_file", words=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vt", {"hops": 0}),
        ("vt", {"chains": True}),
        ("vt", {"chains": 500}),
        ("kv_retrieval", {"questions": 0}),
        ("ledger", {"accounts": 0}),
        ("track", {"variables": 1.5}),
        ("facts", {"kind": "colour"}),
        ("facts", {"together": 0}),
        ("facts", {"most": 500}),
        ("conversation", {"turns": 1}),
        ("conversation", {"turns": 500}),
        ("text_file", {"following": 0}),
    ],
)
def test_options_that_cannot_be_are_refused(name, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        resolve_task(name, **options)


@pytest.mark.parametrize("most", [None, 40, 10_000])
@pytest.mark.parametrize("overhead", [0, 30])
@pytest.mark.parametrize("unit", [0.3, 1, 7, 90])
def test_the_search_finds_the_largest_that_fits(unit, overhead, most):
    calls = []

    def price(units):
        calls.append(units)
        return int(overhead + unit * units)

    found = largest(price, price(1), 1_000, 1, most)
    assert price(found) <= 1_000
    assert found == most or price(found) > 1_000 - max(2 * unit, 6)
    assert len(calls) < 20


def test_a_sample_is_a_value(make, counters):
    sample = make("passkey").sample(counters["words"], 256, 0, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.context = ""
