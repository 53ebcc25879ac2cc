"""What a metric is: a number from 0 (wrong) to 1 (right) for one answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import ConfigError

#: ``metric(prediction, answers)``: what the model wrote and the references, at least one.
Metric = Callable[[str, Sequence[str]], float]


def check_answers(answers: Sequence[str]) -> None:
    """Raises :class:`ConfigError` unless there are references, each a string of its own."""
    if isinstance(answers, str) or not answers:
        raise ConfigError(f"answers must be a sequence of at least one string, got {answers!r}")


def best_of(against: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    """The highest score that ``against(prediction, answer)`` gives for any of the references."""
    check_answers(answers)
    return max(against(prediction, answer) for answer in answers)
