"""What a release says of itself: one version, a page for the package index, links that lead somewhere, sizes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from squeezeattention.embedded import FOLDER

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    return tomllib.loads(read("pyproject.toml"))


def test_one_version(project: dict[str, Any]) -> None:
    """The newest entry of the changelog is of the version that is built."""
    version = project["project"]["version"]
    assert re.findall(r"(?m)^## \[(.+?)\]", read("CHANGELOG.md"))[0] == version
    assert re.findall(r"(?m)^version: (.+)$", read("CITATION.cff")) == [version]


def test_links_lead_to_files(project: dict[str, Any]) -> None:
    """Also in the source archive, which has what its list names and a few files that are always in one."""
    archived = [name.strip("/") for name in project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]]
    archived += ["LICENSE", "pyproject.toml"]
    assert {page.relative_to(ROOT).parts[0] for page in PAGES} <= set(archived)
    for page in PAGES:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            if target.startswith(("https://", "#")):
                continue
            path = (page.parent / target.partition("#")[0]).resolve()
            assert path.exists(), f"{page.name}: {target}"
            assert path.relative_to(ROOT).parts[0] in archived, f"{page.name}: {target}"


def test_the_page_of_the_index_needs_no_other_file(project: dict[str, Any]) -> None:
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = read("README.md")
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert all(target.startswith("https://") for target in LINK.findall(text))
    assert "![" not in text
    assert "[SqueezeAttention](https://arxiv.org/abs/2404.04793)" in text
    assert "docs/using.md has the semantics" in text
    assert text.count("```") == read("README.md").count("```")
    assert "<img" not in text
    assert "not affiliated with\nthe paper's authors, whose code is a separate project" in text
    # No words about a picture that is not there: neither its caption nor "above".
    (caption,) = re.findall(r"(?m)^!\[.*\n\n\*([^*]+)\*$", read("README.md"))
    assert caption not in text
    assert "above" not in text.split("## Results")[0]


def test_sizes_are_those_of_the_files() -> None:
    weights, tokenizer = ((FOLDER / name).stat().st_size / 1e6 for name in ("model.safetensors", "tokenizer.json"))
    assert f"| {weights:.1f} MB (fp16 safetensors) and {tokenizer:.1f} MB of tokenizer |" in read(
        "docs/embedded-model.md"
    )
    assert f"{weights + tokenizer:.0f} MB instead of 16" in read("CHANGELOG.md")
