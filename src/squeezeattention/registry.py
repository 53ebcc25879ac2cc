"""A name -> class table whose errors list the choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from .errors import ConfigError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Factories by name. ``kind`` is the word used in messages ("policy", "allocator", ...)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str, factory: Callable[..., T], *, replace: bool = False) -> None:
        """Add ``factory`` under ``name``; a name that is taken is an error unless ``replace``."""
        if name in self._factories and not replace:
            raise ConfigError(f"{self.kind} {name!r} is already registered; pass replace=True to replace it")
        self._factories[name] = factory

    def unregister(self, name: str) -> None:
        """Remove a name (an unknown one is an error)."""
        self.factory(name)
        del self._factories[name]

    def factory(self, name: str) -> Callable[..., T]:
        """The factory of ``name``; raises :class:`UnknownNameError` with the choices."""
        try:
            return self._factories[name]
        except (KeyError, TypeError):
            close = get_close_matches(str(name), self._factories, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}{hint}; choose one of: {', '.join(self.names())}"
            ) from None

    def create(self, name: str, **options: object) -> T:
        """Build ``name`` with ``options``; options that it does not take are a :class:`ConfigError`."""
        factory = self.factory(name)
        try:
            return factory(**options)
        except TypeError as error:
            raise ConfigError(f"{self.kind} {name!r} cannot take {options}: {error}") from error

    def resolve(self, spec: str | T, kind: type[T], **options: object) -> T:
        """``spec`` as it is if it is a ``kind``, or what its name stands for, built with ``options``.

        Raises :class:`UnknownNameError`, or :class:`ConfigError` for anything else and for options with an object.
        """
        if isinstance(spec, kind):
            if options:
                raise ConfigError(f"options {options} go with a {self.kind}'s name, not with the object {spec!r}")
            return spec
        if not isinstance(spec, str):
            article = "an" if kind.__name__[0] in "AEIOU" else "a"
            raise ConfigError(f"{self.kind} must be a name or {article} {kind.__name__}, got {spec!r}")
        return self.create(spec, **options)

    def names(self) -> list[str]:
        return sorted(self._factories)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._factories
