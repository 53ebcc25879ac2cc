"""A data set as a task: items from files, chosen by a seed, each a prompt cut to the length that is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ..errors import ConfigError, InputError
from ..tasks.base import CountTokens, Question, Sample, Task
from .fields import Fields, text_of, texts_of
from .reading import Row, Source, read_rows
from .sources import Home, hub_folder, local_files
from .template import Template
from .truncation import without_middle


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that one data set differs in."""

    name: str
    metric: str
    """Name in :data:`~squeezeattention.metrics.METRICS`."""
    summary: str
    template: Template
    max_new_tokens: int
    fields: Fields
    home: Home
    split: str
    first_line: bool = False
    """Only the first line of an answer counts: examples have taught the model to go on with another one."""
    chat: bool = True
    """Whether a chat model's template may go around the prompt: not around examples or code."""


@dataclass
class Item:
    """A context and what is asked about it."""

    context: str
    asked: list[Asked] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """One question, and where it was read."""

    place: str
    input: str
    answers: tuple[str, ...]
    classes: tuple[str, ...]


class Dataset(Task):
    """Items of a data set as samples.

    Which items a seed takes depends on their ids alone: not on the order of the rows, nor on how many are taken.
    Every sample names its item in ``details["item"]``, and ``items`` takes such names back.

    Args:
        path: a file, a folder or a zip archive; ``None`` asks the hub.
        fields: names of the fields where they are not the published ones, by role (see :class:`Fields`).
        prompt: another prompt, with ``{context}`` and ``{input}``.
        items: ids of the items to use, in this order, whatever the seed.

    Raises (when the first sample is made, except for the arguments themselves):
        InputError: the data is not there or not as expected; the message says where to get it.
        ConfigError: an argument cannot work.
    """

    recipe: ClassVar[Recipe]

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        fields: Mapping[str, str | None] | None = None,
        prompt: str | None = None,
        items: Sequence[str] | None = None,
    ) -> None:
        made = self.recipe.template
        self.template = made if prompt is None else Template(prompt, made.asks, made.marker)
        self.fields = self.recipe.fields.mapped(fields or {})
        self._path = None if path is None else Path(path)
        self._items = None if items is None else list(items)

    @cached_property
    def files(self) -> list[Source]:
        """The files that are read."""
        home = self.recipe.home
        return local_files(hub_folder(home) if self._path is None else self._path, home)

    @cached_property
    def items(self) -> dict[str, Item]:
        """All items by their ids."""
        items: dict[str, Item] = {}
        for source in self.files:
            for row in read_rows(source, self.fields.columns()):
                try:
                    self._add(items, row)
                except InputError as error:
                    raise InputError(f"{error}. For {self.name}, {self.recipe.home.advice}") from error
        if not items:
            raise InputError(f"{self.files[0]} has no rows. For {self.name}, {self.recipe.home.advice}")
        return items

    def _add(self, items: dict[str, Item], row: Row) -> None:
        names = self.fields
        context = text_of(row, names.context)
        identity = str(len(items)) if names.id is None else text_of(row, names.id)
        item = items.setdefault(identity, Item(context))
        if item.context != context:
            raise InputError(f"{row.place}: another row of the id {identity!r} has another context")
        item.asked.append(
            Asked(
                place=row.place,
                input="" if names.input is None else "".join(texts_of(row, names.input)),
                answers=texts_of(row, names.answers),
                classes=_classes(row, names.classes),
            )
        )

    def __len__(self) -> int:
        """Number of items that samples can be made of."""
        return len(self.items) if self._items is None else len(self._items)

    def draw(self, seed: int) -> list[str]:
        """All ids in the order in which ``seed`` takes them, or those that were given."""
        if self._items is not None:
            missing = next((one for one in self._items if one not in self.items), None)
            if missing is not None:
                raise InputError(f"there is no item {missing!r} in {self.files[0].name}")
            return self._items

        def rank(identity: str) -> bytes:
            return hashlib.sha256(f"{self.name}/{seed}/{identity}".encode()).digest()

        return sorted(self.items, key=rank)

    def sample(self, count_tokens: CountTokens, length: int, seed: int, index: int) -> Sample:
        """The ``index``-th item that ``seed`` takes; a prompt of more than ``length`` tokens loses its middle.

        Raises :class:`InputError` when there are not so many items, :class:`ConfigError` when a question does
        not fit into ``length``.
        """
        order = self.draw(seed)
        if not 0 <= index < len(order):
            raise InputError(f"{self.name} has {len(order)} items, so there is none of index {index}")
        item = self.items[order[index]]
        prompts = [self.template.fill(item.context, asked.input) for asked in item.asked]
        whole = prompts[0][0]
        if any(context != whole for context, _ in prompts):
            raise ConfigError(f"the questions about {order[index]!r} must share one context; name a field for the id")
        following = max(count_tokens(text) for _, text in prompts)
        context = without_middle(whole, length, count_tokens, following=following)
        questions = tuple(
            Question(text, asked.answers, self.recipe.max_new_tokens)
            for asked, (_, text) in zip(item.asked, prompts, strict=True)
        )
        details = self._details(order[index], whole, context)
        return Sample(self.name, length, seed, index, context, questions, details=details)

    def _details(self, identity: str, whole: str, context: str) -> dict[str, Any]:
        asked = self.items[identity].asked
        return {
            "item": identity,
            "places": [one.place for one in asked],
            "characters": len(whole),
            "characters_cut": len(whole) - len(context),
            "classes": list(asked[0].classes),
            "first_line": self.recipe.first_line,
            "chat": self.recipe.chat,
        }

    def scored_part(self, answer: str) -> str:
        """What of an answer counts."""
        return first_line(answer) if self.recipe.first_line else answer


def first_line(answer: str) -> str:
    """LongBench's rule for tasks with examples: what comes before the first line break that follows any text."""
    return answer.lstrip("\n").partition("\n")[0]


def _classes(row: Row, name: str | None) -> tuple[str, ...]:
    """The labels of a row; only classifications have them."""
    return texts_of(row, name) if name is not None else ()


def dataset(recipe: Recipe) -> type[Dataset]:
    """The task that a recipe describes."""
    attributes = {
        "recipe": recipe, "name": recipe.name, "metric": recipe.metric, "summary": recipe.summary,
        "__doc__": recipe.summary, "__module__": __name__,
    }  # fmt: skip
    return type(recipe.name, (Dataset,), attributes)
