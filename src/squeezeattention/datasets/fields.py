"""Which field of a row means what, and the texts in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, InputError
from .reading import Row


@dataclass(frozen=True)
class Fields:
    """Names of fields by their role. A dot goes into an object, or into each object of a list."""

    context: str
    """A text, or a list of texts that are joined by empty lines."""
    answers: str
    """A text, or a list of texts."""
    input: str | None = None
    """What is asked; summaries have none."""
    id: str | None = None
    """Rows of one id share a context and differ in the question. ``None`` numbers the rows."""
    classes: str | None = None
    """All labels of a classification."""

    def mapped(self, names: Mapping[str, str | None]) -> Fields:
        """The same with other names for some roles; raises :class:`ConfigError` for a role there is not."""
        roles = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(names) - set(roles))
        if unknown:
            raise ConfigError(f"there is no role {unknown[0]!r}; fields can be named for: {', '.join(roles)}")
        return dataclasses.replace(self, **names)  # type: ignore[arg-type]

    def columns(self) -> list[str]:
        """Everything that has to be read of a row: each name, and what it begins with."""
        names = [name for name in dataclasses.astuple(self) if name is not None]
        return sorted({part for name in names for part in (name, name.partition(".")[0])})


def text_of(row: Row, name: str, *, joined: str = "\n\n") -> str:
    """The text of a field; lists are ``joined``. Raises :class:`InputError` if it is missing or empty."""
    found = joined.join(texts_of(row, name))
    if not found.strip():
        raise InputError(f"{row.place}: the field {name!r} is empty")
    return found


def texts_of(row: Row, name: str) -> tuple[str, ...]:
    """The texts of a field, at least one. Raises :class:`InputError` if it is missing or of another kind."""
    value = lookup(row.values, name)
    if value is None:
        raise InputError(f"{row.place}: there is no field {name!r}; the row has {', '.join(row.values) or 'none'}")
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in values):
        raise InputError(f"{row.place}: the field {name!r} must be a text or a list of texts")
    return tuple(str(one) for one in values)


def lookup(values: Any, name: str) -> Any:
    """What a dotted name leads to, ``None`` where there is nothing. A field of just that name comes first."""
    if isinstance(values, Mapping) and name in values:
        return values[name]
    if isinstance(values, list):
        found = [lookup(one, name) for one in values]
        return None if None in found else found
    first, dot, rest = name.partition(".")
    if isinstance(values, Mapping) and dot and first in values:
        return lookup(values[first], rest)
    return None
