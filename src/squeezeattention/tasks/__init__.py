"""Seeded tasks on text that every Python installation has: no download, same text everywhere."""

from __future__ import annotations

from ..registry import Registry
from .base import NLL, CountTokens, Question, Sample, Task
from .conversation import Conversation
from .cwe import CommonWords
from .facts import Facts
from .fwe import FrequentWords
from .kv_retrieval import KeyValueRetrieval
from .language import Code, TextFile
from .ledger import Ledger
from .lists import Copy, Sort
from .niah import NiahMultikey2, NiahMultikey3, NiahSingle1
from .niah_several import NiahMultiquery, NiahMultivalue
from .passkey import Passkey
from .recall import Recall
from .track import Track
from .vt import VariableTracking

TASKS: Registry[Task] = Registry("task", name=str, metric=str, summary=str)
TASKS.register("facts", Facts)
TASKS.register("conversation", Conversation)
TASKS.register("recall", Recall)
TASKS.register("niah_single_1", NiahSingle1)
TASKS.register("niah_multikey_2", NiahMultikey2)
TASKS.register("niah_multikey_3", NiahMultikey3)
TASKS.register("niah_multivalue", NiahMultivalue)
TASKS.register("niah_multiquery", NiahMultiquery)
TASKS.register("vt", VariableTracking)
TASKS.register("cwe", CommonWords)
TASKS.register("fwe", FrequentWords)
TASKS.register("passkey", Passkey)
TASKS.register("kv_retrieval", KeyValueRetrieval)
TASKS.register("ledger", Ledger)
TASKS.register("track", Track)
TASKS.register("copy", Copy)
TASKS.register("sort", Sort)
TASKS.register("code", Code)
TASKS.register("text_file", TextFile)


def resolve_task(spec: str | Task, /, **options: object) -> Task:
    """A task from its registered name (with ``options``) or a :class:`Task` as it is.

    Raises :class:`~squeezeattention.errors.UnknownNameError` or :class:`~squeezeattention.errors.ConfigError`.
    """
    return TASKS.resolve(spec, Task, **options)  # type: ignore[type-abstract]


__all__ = ["NLL", "TASKS", "CountTokens", "Question", "Sample", "Task", "resolve_task"]
