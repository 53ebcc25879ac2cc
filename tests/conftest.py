"""What tests of several folders share."""

from __future__ import annotations

from typing import Any


def refused(result: Any, *words: str) -> None:
    """A run of the command ended with one line on stderr, which has these words, and exit code 2."""
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
