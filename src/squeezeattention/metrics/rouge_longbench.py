"""ROUGE-L as LongBench's own script has it, by the ``rouge`` package: another number than the usual one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .base import best_of


def rougeL_longbench(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words that some sentence of each has in order; the best of the references.

    Sentences end at full stops, words at blanks; capitals and punctuation count. Of each pair of a reference's and a
    prediction's sentence the longest common subsequence is taken, and the *different* words of all of them are set
    against the different words of either text. The package computes the same, but for 1e-8 in its denominator and for
    sentences of about a thousand words, of which it makes an error (and the script 0).
    """
    return best_of(_f1, prediction, answers)


def _f1(prediction: str, answer: str) -> float:
    said, wanted = _sentences(prediction), _sentences(answer)
    common = {word for reference in wanted for sentence in said for word in _subsequence(reference, sentence)}
    distinct = len({word for sentence in said for word in sentence}) + len({w for one in wanted for w in one})
    return 2 * len(common) / distinct if common else 0.0


def _sentences(text: str) -> list[list[str]]:
    """Words of each; what is blank between two full stops is a sentence of one empty word."""
    return [part.split() or [""] for part in text.split(".") if part]


def _subsequence(one: Sequence[str], other: Sequence[str]) -> Iterator[str]:
    """The longest common subsequence, backwards: of several, the one that is found from the end."""
    lengths = [[0] * (len(other) + 1)]
    for word in one:
        above, row = lengths[-1], [0]
        for column, found in enumerate(other):
            row.append(above[column] + 1 if word == found else max(above[column + 1], row[-1]))
        lengths.append(row)
    i, j = len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            yield one[i - 1]
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
