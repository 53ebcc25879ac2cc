"""Tasks by name, generated ones and data sets alike, and what the harness asks of them beyond their samples."""

from __future__ import annotations

from collections.abc import Callable

from ..datasets import DATASETS, Dataset
from ..errors import UnknownNameError
from ..metrics import resolve_metric
from ..metrics.unrelated import UNRELATED
from ..tasks import TASKS, Task, resolve_task
from ..tasks.base import Question, Sample
from ..tasks.generated import GeneratedTask
from .spec import Spec

#: A full cache that is less than this above chance says that the model cannot do the task.
_BEYOND_CHANCE = 0.1
#: The same above twice what unrelated texts score.
_BEYOND_UNRELATED = 0.02


def make_task(text: str) -> Task:
    """The task that ``name`` or ``name:option=value`` means, such as ``text_file:path=notes.txt``.

    Raises :class:`UnknownNameError` or :class:`ConfigError`.
    """
    spec = Spec.parse(text)
    options = dict(spec.options)
    if spec.name in DATASETS:
        return DATASETS.create(spec.name, **options)
    try:
        return resolve_task(spec.name, **options)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}, or a data set: {', '.join(DATASETS)}") from None


def chance_of(text: str) -> float:
    """What guessing scores on the task of this name, without making it: its data need not be there."""
    metric = _overlap(text)
    if metric is not None:
        return UNRELATED[metric]
    name = Spec.parse(text).name
    return float(getattr(TASKS.factory(name), "chance", 0.0)) if name in TASKS else 0.0


def is_overlap(text: str) -> bool:
    """Whether the task is scored by what answers and references have in common, of which nobody expects a half."""
    return _overlap(text) is not None


def near_chance_below(text: str) -> float:
    """The score that a model has to reach for it to be said that it can do the task."""
    chance = chance_of(text)
    return 2 * chance + _BEYOND_UNRELATED if is_overlap(text) else chance + _BEYOND_CHANCE


def _overlap(text: str) -> str | None:
    name = Spec.parse(text).name
    metric = getattr(DATASETS.factory(name), "metric", None) if name in DATASETS else None
    return metric if metric in UNRELATED else None


def split_of(task: Task) -> str:
    """Which part of its data a task draws from, for the record."""
    if isinstance(task, Dataset):
        return task.recipe.split
    if isinstance(task, GeneratedTask):
        return "held out" if task.held_out else "training"
    return "not stated"


def score_answer(task: Task, sample: Sample, question: Question, answer: str) -> float:
    """The task's metric, of what counts of an answer: data sets with examples count its first line only.

    Raises :class:`UnknownNameError` for an unknown metric, :class:`MissingExtraError` for one that is not installed.
    """
    metric: Callable[..., float] = resolve_metric(task.metric)
    if not isinstance(task, Dataset):
        return float(metric(answer, question.answers))
    labels = {"classes": sample.details["classes"]} if task.metric == "classification" else {}
    return float(metric(task.scored_part(answer), question.answers, **labels))
