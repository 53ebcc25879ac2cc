"""The ``squeeze`` command. Needs the ``cli`` extra."""

from __future__ import annotations

import sys

from ..errors import MissingExtraError
from ..extras import require


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    try:
        for module in ("typer", "rich"):
            require(module, "cli")
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    from .app import app

    app(prog_name="squeeze")
