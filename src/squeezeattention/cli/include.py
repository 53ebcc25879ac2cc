"""``--include FILE.py``: a user's own policies, allocators, signals and tasks, by name, in every command."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError, SqueezeError


def include(paths: Sequence[Path] | None) -> Sequence[Path] | None:
    """Run the files, each once in a process. Raises :class:`ConfigError` for one that cannot be run."""
    for path in paths or ():
        _run(path)
    return paths


def _run(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"cannot include {path}: there is no such file")
    name = f"squeeze_include_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"cannot include {path}: it is no Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        what = str(error) if isinstance(error, SqueezeError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"cannot include {path}{_line(error, path)}: {what}") from error


def _line(error: BaseException, path: Path) -> str:
    """Where in the file it happened, as far as that is known."""
    own = path.resolve()
    if isinstance(error, SyntaxError) and error.filename is not None and Path(error.filename).resolve() == own:
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == own]
    return f", line {lines[-1]}" if lines else ""
