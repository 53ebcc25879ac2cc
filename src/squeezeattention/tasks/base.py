"""What a task is: texts to read, questions about them, and how answers are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

#: Number of tokens of a text, by the tokenizer of the model under test (no special tokens).
CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class Question:
    """What is asked after a context was read."""

    text: str
    """Follows the context directly; ends where the model's answer begins."""
    answers: tuple[str, ...]
    """References; the task's metric says whether one or all of them are wanted."""
    max_new_tokens: int
    """Tokens that the model may answer with, the same for every method."""


@dataclass(frozen=True)
class Sample:
    """One context and its questions. The questions share the context, so it is read once."""

    task: str
    length: int
    """Tokens that context and longest question were sized for."""
    seed: int
    index: int
    context: str = field(repr=False)
    questions: tuple[Question, ...] = field(repr=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Where things are (needle positions, chains, counts), as JSON values: for tests and result files."""

    @property
    def id(self) -> str:
        return f"{self.task}/{self.length}/{self.seed}/{self.index}"


class Task(ABC):
    """Makes samples of any length from a seed, offline.

    The same (tokenizer, length, seed, index) gives the same sample on every machine; draw from
    ``random.Random(f"{name}/{length}/{seed}/{index}")`` and nothing else.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    """Name of the metric in :data:`~squeezeattention.metrics.METRICS`."""
    summary: ClassVar[str]
    """One line for ``squeeze tasks``."""

    @abstractmethod
    def sample(self, count_tokens: CountTokens, length: int, seed: int, index: int) -> Sample:
        """A sample whose context and longest question together take at most ``length`` tokens, and nearly that.

        Raises :class:`~squeezeattention.errors.ConfigError` when the task does not fit into ``length``.
        """
