"""A policy or an allocator as text: its name, and its options where they differ from the defaults."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..errors import ConfigError

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Spec:
    """``name:option=value,option=value``. Options are sorted, so that equal specs have equal texts."""

    name: str
    options: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(sorted(self.options)))

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read a spec; values are JSON numbers, ``true``, ``false``, ``null``, or else text.

        Raises :class:`ConfigError` for anything of another form, and for an option that is given twice.
        """
        name, colon, rest = text.strip().partition(":")
        if not name or (colon and not rest):
            raise _refuse(text)
        options: dict[str, Value] = {}
        for part in rest.split(",") if rest else ():
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not (key.isidentifier() and equals and value) or key in options:
                raise _refuse(text)
            options[key] = _value(value)
        return cls(name, tuple(options.items()))

    def get(self, option: str) -> Value:
        """An option's value, ``None`` if it is not given."""
        return dict(self.options).get(option)

    def having(self, **options: Value) -> Spec:
        """The same with more options; one that was given before is a :class:`ConfigError`."""
        if twice := [name for name, _ in self.options if name in options]:
            raise ConfigError(f"{', '.join(twice)} was given twice: in {str(self)!r}, and as {options}")
        return Spec(self.name, (*self.options, *options.items()))

    def without(self, option: str) -> Spec:
        """The same but for one option."""
        return Spec(self.name, tuple((name, value) for name, value in self.options if name != option))

    @property
    def label(self) -> str:
        """For tables and legends: ``squeeze clamp p=0.35``."""
        values = [value if isinstance(value, str) else f"{name}={_text(value)}" for name, value in self.options]
        return " ".join([self.name, *values])

    def __str__(self) -> str:
        options = ",".join(f"{name}={_text(value)}" for name, value in self.options)
        return f"{self.name}:{options}" if options else self.name


def _value(text: str) -> Value:
    try:
        value = json.loads(text, parse_constant=str)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float) or value is None else text


def _text(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _refuse(text: str) -> ConfigError:
    return ConfigError(f"cannot read {text!r}: give a name, or a name with options such as squeeze:outliers=clamp")
