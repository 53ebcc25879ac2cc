"""Models by the names that users give them: what is wrong with a name or a folder is told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError, SqueezeError


def check_there(name: str, verb: str = "load") -> None:
    """:class:`InputError` if ``name`` can only be a folder, and there is none."""
    if (Path(name).is_absolute() or name.startswith(".")) and not Path(name).is_dir():
        raise InputError(f"cannot {verb} the model {name}: there is no such folder")


@contextmanager
def loading(name: str, kind: type[Exception] = Exception, *, hint: str = "") -> Iterator[None]:
    """Whatever error of a ``kind`` the loaders raise inside becomes an :class:`InputError`, with a ``hint``."""
    check_there(name)
    with telling(name, kind, hint=hint):
        yield


@contextmanager
def telling(name: str, kind: type[Exception] = Exception, *, hint: str = "") -> Iterator[None]:
    """As :func:`loading`, of a model that need not be in a folder."""
    try:
        yield
    except SqueezeError:
        raise
    except kind as error:
        raise InputError(f"cannot load the model {name!r}: {first_line(error)}{hint}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, or else its type."""
    lines = (line.strip() for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__)
