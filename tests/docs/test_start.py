"""What docs/start.md says of the size of caches follows from the shapes of the models."""

from __future__ import annotations

import re
from pathlib import Path

from squeezeattention.bench.shapes import SHAPES

PAGE = Path(__file__).parents[2] / "docs" / "start.md"


def test_bytes_of_a_token_and_of_a_text() -> None:
    rows = re.findall(r"\| `([\w-]+)` \| (\d+) KiB \| ([\d.]+) GiB", PAGE.read_text(encoding="utf-8"))
    assert len(rows) == 3
    for name, kib, gib in rows:
        config = SHAPES.create(name)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * width  # keys and values of 2 bytes
        assert token == int(kib) * 1024
        assert token * 32768 == float(gib) * 2**30
