"""Processes on one device that compile side by side and are timed alone: a lock that rows share and timers do not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class Turns:
    """``None`` for a process that is alone: nothing is waited for."""

    def __init__(self, path: Path | None) -> None:
        self._file: IO[str] | None = None if path is None else path.open("a")

    @contextlib.contextmanager
    def row(self) -> Iterator[None]:
        """Work that other rows may run beside, but no timer."""
        self._lock("LOCK_SH")
        try:
            yield
        finally:
            self._lock("LOCK_UN")
            if self._file is not None:
                time.sleep(0.2)  # whoever waits to be alone has its chance

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside of a row: wait until all other rows have ended or wait as well, and keep them away."""
        self._lock("LOCK_UN")
        self._lock("LOCK_EX")
        try:
            yield
        finally:
            self._lock("LOCK_SH")

    def _lock(self, how: str) -> None:
        if self._file is not None:
            import fcntl  # not on Windows, where nothing runs side by side

            fcntl.flock(self._file, getattr(fcntl, how))
