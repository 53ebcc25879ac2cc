"""The same key gives the same sample on every machine, with every version of Python: hashes of one of each.

A change of a task that changes these hashes changes every result obtained with it; say so in the changelog.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from squeezeattention.tasks import TASKS, corpus, language

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


@pytest.fixture
def fixed_library(monkeypatch, text_file):
    """One module instead of the library, which differs between versions of Python."""
    text = text_file.read_text(encoding="utf-8")
    monkeypatch.setattr(corpus, "modules", lambda **options: (("module.py", text),))
    language._library.cache_clear()
    yield
    language._library.cache_clear()


@pytest.mark.usefixtures("fixed_library")
@pytest.mark.parametrize("name", list(TASKS))
def test_samples_are_what_they_were(make, counters, name):
    sample = make(name).sample(counters["words"], 1100, 5, 2)
    fields = dataclasses.asdict(sample)
    if not sample.turns:  # came later, and says nothing of those that have none
        del fields["turns"]
    text = json.dumps(fields, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == GOLDEN.get(name)
