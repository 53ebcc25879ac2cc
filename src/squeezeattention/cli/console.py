"""Where things are printed: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

#: Both follow sys.stdout and sys.stderr, whatever these are at the time.
OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)


def complain(error: Exception) -> None:
    """One line, red where the terminal has colours."""
    line = " ".join(str(error).split()) or type(error).__name__
    ERR.print(Text.assemble(("error: ", "bold red"), (line, "red")), soft_wrap=True)


def notice(text: str) -> None:
    """A remark beside the result."""
    ERR.print(Text(text, style="yellow"), soft_wrap=True)


def write(text: str) -> None:
    """Text on stdout, as it is and at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def print_json(data: Any) -> None:
    """One JSON object on stdout, as it is."""
    sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr; call it with how much is done, how much there is, and what comes next."""
    columns = (
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),  # last: what does not fit is cut off
    )
    with Progress(*columns, console=ERR, transient=True) as shown:
        task = shown.add_task("starting", total=None)
        begun = False

        def step(done: int, total: int, what: str) -> None:
            nonlocal begun
            if not begun:  # what an earlier run did says nothing of the speed of this one
                shown.reset(task, completed=done, total=total, description=what)
                begun = True
            shown.update(task, completed=done, description=what)

        yield step
