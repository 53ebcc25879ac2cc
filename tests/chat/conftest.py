"""A small random model that chats: the embedded model's tokenizer, and a template like ChatML."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from squeezeattention import load_embedded
from squeezeattention.testing import tiny_model

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="session")
def model() -> Any:
    return tiny_model("llama", vocab_size=len(load_embedded()[1]), eos_token_id=None)


@pytest.fixture
def tokenizer() -> Any:
    """Its template may be changed: each test has its own."""
    tokenizer = copy.deepcopy(load_embedded()[1])
    tokenizer.chat_template = TEMPLATE
    return tokenizer
