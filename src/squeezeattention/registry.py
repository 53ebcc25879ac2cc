"""A name -> class table whose errors list the choices."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from .errors import ConfigError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Factories by name.

    ``kind`` is the word used in messages ("policy", "allocator", ...), ``attributes`` what every class of it has to
    say of itself, as a name and a type.
    """

    def __init__(self, kind: str, **attributes: type) -> None:
        self.kind = kind
        self._attributes = attributes
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str, factory: Callable[..., T], *, replace: bool = False) -> None:
        """Add ``factory`` under ``name``.

        Raises :class:`ConfigError` for a name that is taken (unless ``replace``) or is no name, and for a class that
        cannot work: an attribute or a method that it must have is missing.
        """
        if not isinstance(name, str) or not name:
            raise ConfigError(f"a {self.kind} is registered under a name, got {name!r}")
        if name in self._factories and not replace:
            raise ConfigError(f"{self.kind} {name!r} is already registered; pass replace=True to replace it")
        if not callable(factory):
            raise ConfigError(f"{self.kind} {name!r} must be a class, or a function that makes one, got {factory!r}")
        if inspect.isclass(factory):
            self._check(factory, factory.__name__)
            if missing := sorted(getattr(factory, "__abstractmethods__", ())):
                raise ConfigError(f"{self.kind} {factory.__name__} has no method {', '.join(missing)}")
        self._factories[name] = factory

    def _check(self, made: object, called: str) -> None:
        """Whether a class or an object says of itself what it has to."""
        for attribute, wanted in self._attributes.items():
            found = getattr(made, attribute, None)
            if not isinstance(found, wanted):
                raise ConfigError(
                    f"{self.kind} {called} has no {attribute}: give the class {attribute} = ... "
                    f"({'text' if wanted is str else wanted.__name__})" + ("" if found is None else f", not {found!r}")
                )

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

    def create(self, name: str, /, **options: object) -> T:
        """Build ``name`` with ``options``; options that it does not take are a :class:`ConfigError`."""
        factory = self.factory(name)
        try:
            inspect.signature(factory).bind(**options)
        except TypeError as error:  # any other one comes from inside and is not about the options
            raise ConfigError(f"{self.kind} {name!r} cannot take {options}: {error}") from error
        return factory(**options)

    def resolve(self, spec: str | T, kind: type[T], /, **options: object) -> T:
        """``spec`` as it is if it is a ``kind``, or what its name stands for, built with ``options``.

        Raises :class:`UnknownNameError`, or :class:`ConfigError` for anything else and for options with an object.
        """
        if isinstance(spec, kind):
            if options:
                raise ConfigError(f"options {options} go with a {self.kind}'s name, not with the object {spec!r}")
            self._check(spec, type(spec).__name__)
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
