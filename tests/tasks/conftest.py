"""Ways to count tokens, and a text of our own: the standard library is not the same in every Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from squeezeattention.embedded import FOLDER
from squeezeattention.tasks import TASKS, Task


@pytest.fixture(scope="session")
def counters() -> dict[str, Callable[[str], int]]:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    return {
        "words": lambda text: len(text.split()),
        "embedded": lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
    }


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = (f"def function_{n}(x, y):\n    return x * {n} + y  # {n * n}\n" for n in range(3_000))
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def make(text_file: Path) -> Callable[..., Task]:
    """A registered task by name, with the options that it cannot do without."""

    def make(name: str, **options: Any) -> Task:
        if name == "text_file":
            options = {"path": text_file, **options}
        return TASKS.create(name, **options)

    return make
