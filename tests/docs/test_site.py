"""The site (``make docs``) leads to every page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for below in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(below)


def test_every_page_is_in_the_navigation() -> None:
    """And no name stands there twice; ``index.md`` is the README."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    found = list(pages(site["nav"]))
    assert sorted(found) == sorted(["index.md", *(path.name for path in (ROOT / "docs").glob("*.md"))])
