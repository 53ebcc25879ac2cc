"""Tasks by name, generated ones and data sets alike, and what the harness asks of them beyond their samples."""

from __future__ import annotations

from collections.abc import Callable

from ..datasets import DATASETS, Dataset
from ..errors import UnknownNameError
from ..metrics import resolve_metric
from ..tasks import TASKS, Task, resolve_task
from ..tasks.base import Question, Sample
from ..tasks.generated import GeneratedTask
from .spec import Spec


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
    name = Spec.parse(text).name
    return float(getattr(TASKS.factory(name), "chance", 0.0)) if name in TASKS else 0.0


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
