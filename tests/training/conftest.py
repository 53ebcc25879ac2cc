"""The training recipe's modules, importable as its script imports them."""

import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from squeezeattention.embedded import FOLDER

ROOT = Path(__file__).parent.parent.parent
NAMES = ("attention", "documents", "exercises", "muon", "retrieval", "tokenizer", "train")


@pytest.fixture(autouse=True, scope="package")
def _importable():
    """The folder on the path, and its modules gone afterwards: their names are common ones."""
    sys.path.insert(0, str(ROOT / "training"))
    yield
    sys.path.remove(str(ROOT / "training"))
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="package")
def tokenizer():
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
