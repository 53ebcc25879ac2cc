"""Metrics: scores of what a model wrote, from 0 to 1. A short file for each family, a registry line for each metric."""

from __future__ import annotations

from ..errors import ConfigError
from ..registry import Registry
from .base import Metric
from .classification import classification
from .code_sim import code_sim
from .exact import exact_first_line, exact_recall
from .lines import lines_in_order
from .numbers import count, retrieval
from .qa_f1 import qa_f1
from .rouge import rouge1, rouge2, rougeL
from .rouge_longbench import rougeL_longbench
from .string_match import string_match_all, string_match_part

#: Metrics are plain functions, so what is registered is the metric itself: ``METRICS.factory(name)`` is a
#: :data:`Metric`, and ``METRICS.create(name, prediction=..., answers=...)`` a score.
METRICS: Registry[float] = Registry("metric")
METRICS.register("string_match_all", string_match_all)
METRICS.register("string_match_part", string_match_part)
METRICS.register("exact_recall", exact_recall)
METRICS.register("exact_first_line", exact_first_line)
METRICS.register("lines_in_order", lines_in_order)
METRICS.register("rouge1", rouge1)
METRICS.register("rouge2", rouge2)
METRICS.register("rougeL", rougeL)
METRICS.register("rougeL_longbench", rougeL_longbench)
METRICS.register("qa_f1", qa_f1)
METRICS.register("classification", classification)
METRICS.register("retrieval", retrieval)
METRICS.register("count", count)
METRICS.register("code_sim", code_sim)


def resolve_metric(spec: str | Metric) -> Metric:
    """A metric from its registered name, or a function ``(prediction, answers) -> float`` as it is.

    Raises :class:`~squeezeattention.errors.UnknownNameError` or :class:`~squeezeattention.errors.ConfigError`.
    """
    if isinstance(spec, str):
        return METRICS.factory(spec)
    if not callable(spec):
        raise ConfigError(f"metric must be a name or a function (prediction, answers) -> float, got {spec!r}")
    return spec


__all__ = ["METRICS", "Metric", "resolve_metric"]
