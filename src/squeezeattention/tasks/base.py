"""What a task is: texts to read, questions about them, and how answers are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

#: Number of tokens of a text, by the tokenizer of the model under test (no special tokens).
CountTokens = Callable[[str], int]

#: :attr:`Task.metric` of samples with a continuation: its mean negative log-likelihood per token, in nats. It comes
#: from logits, so it is not among the metrics, which score what was written.
NLL = "nll"


@dataclass(frozen=True)
class Question:
    """What is asked after a context was read."""

    text: str
    """Follows the context directly; ends where the model's answer begins."""
    answers: tuple[str, ...]
    """References; the task's metric says whether one or all of them are wanted."""
    max_new_tokens: int
    """Tokens that the model may answer with, the same for every method."""
    reply: str = field(default="", repr=False)
    """A right answer written out, following :attr:`text` directly, where there is one: what training aims at."""


@dataclass(frozen=True)
class Sample:
    """One context, and questions about it or the text that goes on from it.

    Questions share the context, so it is read once. A sample with a :attr:`continuation` has no questions: nothing
    is generated, the model reads the context and is scored by how likely it finds what comes next.
    """

    task: str
    length: int
    """Tokens that context and longest question, or context and continuation, were sized for."""
    seed: int
    index: int
    context: str = field(repr=False)
    questions: tuple[Question, ...] = field(repr=False)
    continuation: str | None = field(default=None, repr=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Where things are (needle positions, chains, counts), as JSON values: for tests and result files."""
    turns: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Where the context is a conversation: what the user said and what was answered, turn by turn."""

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
    """Name of the metric in :data:`~squeezeattention.metrics.METRICS`, or :data:`NLL`."""
    summary: ClassVar[str]
    """One line for ``squeeze tasks``."""
    chance: ClassVar[float] = 0.0
    """What naming things of the text at random scores, about (benchmarks/chance.py)."""

    @abstractmethod
    def sample(self, count_tokens: CountTokens, length: int, seed: int, index: int) -> Sample:
        """A sample whose context and longest question (or continuation) take ``length`` tokens or a little less.

        They are counted one by one, as they are read: the context first, then a question on top of it.
        Raises :class:`~squeezeattention.errors.ConfigError` when the task does not fit into ``length``.
        """
