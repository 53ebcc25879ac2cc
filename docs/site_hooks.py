"""What the site (mkdocs) has besides the files: the README as its first page, and names for what is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https://|#)([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Put the README in front."""
    readme = Path(config.config_file_path).parent / "README.md"
    files.append(File.generated(config, "index.md", content=inside(readme.read_text(encoding="utf-8"), "docs/")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Pages name files of the source archive, which stand beside the documentation."""
    return markdown if page.file.src_uri == "index.md" else inside(markdown, "")


def inside(markdown: str, folder: str) -> str:
    """Links as the site has them: those into ``folder`` seen from there, others (to code, to records) as mere names."""

    def link(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        here = target.startswith(folder) and not target.startswith("../")
        return f"{mark}[{text}]({target.removeprefix(folder)})" if here else text

    return _LINK.sub(link, markdown)
