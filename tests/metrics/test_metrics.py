"""Metrics against examples made by hand, against the packages they stand for, and what holds for all of them."""

import random
import sys
from functools import partial

import pytest

from squeezeattention.errors import ConfigError, MissingExtraError, UnknownNameError
from squeezeattention.metrics import METRICS, resolve_metric, rouge
from squeezeattention.metrics.classification import classification
from squeezeattention.metrics.qa_f1 import normalized

#: A right answer; metrics whose references have a form of their own are listed.
RIGHT = {"count": "12"}
NEEDS = {"rouge1": "rouge_score", "rouge2": "rouge_score", "rougeL": "rouge_score", "code_sim": "rapidfuzz"}


def score(name, prediction, *answers):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    return METRICS.factory(name)(prediction, answers)


@pytest.mark.parametrize("name", list(METRICS))
def test_right_is_one_and_nothing_is_zero(name):
    right = RIGHT.get(name, "Paragraph 12")
    assert score(name, right, right) == 1.0
    assert score(name, "", right) == 0.0
    assert score(name, "\n\n", right) == 0.0
    assert score(name, "quite something else", right) < 0.5


@pytest.mark.parametrize("name", list(METRICS))
def test_scores_lie_between_zero_and_one(name):
    rng = random.Random(0)
    for _ in range(50):
        prediction, answer = (
            "".join(rng.choices(["the ", "12 ", "Paragraph ", "\n", "#", "a", "b. ", '"'], k=rng.randint(0, 12)))
            for _ in range(2)
        )
        assert 0.0 <= score(name, prediction, f"{answer}7") <= 1.0


@pytest.mark.parametrize("name", list(METRICS))
def test_references_must_be_a_sequence_of_strings(name):
    for answers in ("a string is one too", (), []):
        if name in NEEDS:
            pytest.importorskip(NEEDS[name])
        with pytest.raises(ConfigError, match="at least one string"):
            METRICS.factory(name)("text", answers)


@pytest.mark.parametrize("name", [name for name in METRICS if name not in ("string_match_all", "lines_in_order")])
def test_the_best_reference_counts(name):
    right = RIGHT.get(name, "Paragraph 12")
    assert score(name, right, "Paragraph 7", right, "Paragraph 9") == 1.0


def test_resolving():
    assert resolve_metric("count") is METRICS.factory("count")
    assert resolve_metric(max) is max
    with pytest.raises(UnknownNameError, match="did you mean 'rouge1'"):
        resolve_metric("rouge_1")
    with pytest.raises(ConfigError, match="must be a name or a function"):
        resolve_metric(3)


def test_string_matching():
    assert score("string_match_all", "They are AAA, bbb and CCC.", "aaa", "BBB", "ddd", "c") == 0.75
    assert score("string_match_part", "They are AAA.", "bbb", "aaa") == 1.0
    assert score("string_match_part", "They are AAA.", "bbb", "ccc") == 0.0


@pytest.mark.parametrize(
    ("prediction", "value"),
    [
        (" 48213\n# recall", 1),
        ('"48213"', 1),
        (" 48213.", 1),
        ("482130", 0),
        ("48213a", 0),
        ("4821", 0),
        ("is 48213", 0),
    ],
)
def test_exact_recall(prediction, value):
    assert score("exact_recall", prediction, "48213") == value


def test_exact_first_line():
    assert score("exact_first_line", "\n  amber wolf \nand more", "amber wolf") == 1
    assert score("exact_first_line", "amber wolf and more", "amber wolf") == 0
    assert score("exact_first_line", " \n ", "amber wolf") == 0


@pytest.mark.parametrize(
    ("prediction", "value"),
    [
        ("1. a\n2. b\n3. c\n4. d", 1),
        ("\n  1. a  \n\n2. b\n3. c\n4. d\nand a lot more", 1),
        ("1. a\n3. c\n4. d", 3 / 4),  # one left out
        ("1. a\n2. x\n3. c\n4. d", 3 / 4),  # one wrong
        ("Here:\n1. a\n2. b\n3. c\n4. d", 3 / 4),  # one too many
        ("4. d\n3. c\n2. b\n1. a", 1 / 4),
        ("1. a\n1. a\n1. a\n1. a", 1 / 4),
        ("x\nx\nx\nx\n1. a\n2. b\n3. c\n4. d", 0),  # as many lines count as there are references
    ],
)
def test_lines_in_order(prediction, value):
    assert score("lines_in_order", prediction, "1. a", "2. b", "3. c", "4. d") == value


def test_lines_in_order_is_the_longest_common_subsequence():
    def naive(a, b):
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        return table[-1][-1]

    rng = random.Random(1)
    for _ in range(200):
        said, answers = (rng.choices("abcd", k=rng.randint(1, 12)) for _ in range(2))
        want = naive(said[: len(answers)], answers) / len(answers)
        assert score("lines_in_order", "\n".join(said), *answers) == want


def test_rouge_is_that_of_the_package():
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    answers = ("The cat sat on the mat.", "A cat was sitting on a mat, purring.")
    for prediction in ("The cat was on the mat", "on the mat the cat sat sat", "dogs"):
        for kind in ("rouge1", "rouge2", "rougeL"):
            ours = score(kind, prediction, *answers)
            theirs = scorer.RougeScorer([kind]).score_multi(answers, prediction)[kind].fmeasure
            assert ours == pytest.approx(theirs)
    # 5 of 6 words each; "the cat", "on the", "the mat" of 5 pairs each; "the on the" of 6 words.
    assert score("rouge1", "The cat was on the mat", answers[0]) == pytest.approx(5 / 6)
    assert score("rouge2", "The cat was on the mat", answers[0]) == pytest.approx(3 / 5)
    assert score("rougeL", "mat the on was cat the", answers[0]) == pytest.approx(3 / 6)


@pytest.mark.parametrize(
    ("prediction", "answer", "theirs"),
    [  # of rouge 1.0.1: Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
        (
            "The committee approved the budget. It was signed in May.",
            "In May the budget was approved by the committee. The mayor signed it.",
            0.4545454495867769,
        ),
        (
            "Amanda baked cookies, and will bring Jerry some tomorrow",
            "Amanda baked cookies and will bring Jerry some tomorrow.",
            0.888888883888889,
        ),
        (
            "The report says that costs rose. Costs rose, the report says.\nNothing else.",
            "Costs rose. The report says why costs rose.",
            0.6666666619135801,
        ),
    ],
)
def test_rouge_of_longbench_is_that_of_its_script(prediction, answer, theirs):
    assert score("rougeL_longbench", prediction, answer) == pytest.approx(theirs, abs=1e-8)
    assert score("rougeL", prediction, answer) != pytest.approx(theirs, abs=0.05)


def test_rouge_of_longbench_is_that_of_the_package():
    theirs, rng = pytest.importorskip("rouge").Rouge(), random.Random(0)
    words = ["the", "The", "cat", "mat.", "on", "a.b", "sat,", ". ", ".", "\n", "x"]
    for _ in range(300):
        said, answer = (" ".join(["x", *rng.choices(words, k=rng.randint(1, 40))]) for _ in range(2))
        want = theirs.get_scores([said], [answer], avg=True)["rouge-l"]["f"]
        assert score("rougeL_longbench", said, answer) == pytest.approx(want, abs=1e-8)


def test_question_answering_f1():
    assert normalized("  The  Eiffel-Tower, (a) landmark! ") == "eiffeltower landmark"
    assert score("qa_f1", "The Eiffel Tower.", "eiffel tower") == 1
    assert score("qa_f1", "in the city of Paris", "Paris, France") == pytest.approx(2 * 1 / (4 + 2))
    assert score("qa_f1", "paris paris", "paris") == pytest.approx(2 / 3)
    assert score("qa_f1", "the", "a") == 0


def test_classification_counts_the_classes_that_are_named():
    classes = ("Date", "City", "Expression abbreviated", "Abbreviation", "Currency name", "Name")
    metric = partial(classification, classes=classes)
    assert metric("Date", ["Date"]) == 1
    assert metric("Date or City", ["Date"]) == 1 / 2
    assert metric("City", ["Date"]) == 0
    # "City" is no part of the right name here, "Name" is a part of nothing that is named.
    assert metric("Currency name", ["Currency name"]) == 1
    assert classification("Fish and Shellfish", ["Shellfish"], classes=("Fish", "Shellfish", "Shell")) == 1 / 2
    assert classification("Shellfish", ["Shellfish"], classes=("Shell", "Shellfish")) == 1
    assert classification("Date or City", ["Date"]) == 1


def test_numbers():
    assert score("count", "There are 7 paragraphs, 7 of 20.", "7") == pytest.approx(2 / 3)
    assert score("count", "many", "7") == 0
    assert score("retrieval", "Paragraph 12 or Paragraph 3", "Paragraph 12") == 1 / 2
    assert score("retrieval", "Paragraph 120", "Paragraph 12") == 0
    with pytest.raises(ConfigError, match="no number"):
        score("retrieval", "Paragraph 12", "Paragraph twelve")


def test_code_similarity_of_the_first_line_of_code():
    assert score("code_sim", "\n\n```python\n# the sum\nreturn a + b\nx", "return a + b") == 1
    # "return a" against "return b": one deletion and one insertion of 16 characters.
    assert score("code_sim", "return a", "return b") == pytest.approx(1 - 2 / 16)
    assert score("code_sim", "# nothing else", "") == 0


@pytest.mark.parametrize("name", list(NEEDS))
def test_a_missing_package_is_named_with_its_extra(monkeypatch, name):
    for module in [module for module in sys.modules if module.partition(".")[0] == NEEDS[name]]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, NEEDS[name], None)
    rouge._scorer.cache_clear()
    with pytest.raises(MissingExtraError, match=r"squeezeattention\[eval\]"):
        METRICS.factory(name)("text", ["text"])
