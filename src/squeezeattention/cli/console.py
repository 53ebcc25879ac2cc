"""Where things are printed: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
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


def print_json(data: Any) -> None:
    """One JSON object on stdout, as it is."""
    sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
