"""Read a long text once, keep its compressed cache in a file, and ask about it later.

Run it with ``python examples/saved_cache.py``; the second half would work in another process, on another day.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from squeezeattention import SqueezeCache, load_embedded

CONTEXT = "def area(width, height):\n    return width * height\n\n\n" * 12
QUESTION = "def volume(width, height, depth):\n    return"


def ask(model: Any, tokenizer: Any, context: torch.Tensor, cache: SqueezeCache) -> str:
    question = tokenizer(QUESTION, return_tensors="pt").input_ids
    text = torch.cat([context, question], dim=1)
    answer = model.generate(text, past_key_values=cache, max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(answer[0, text.shape[1] :]))


def main() -> None:
    model, tokenizer = load_embedded()
    context = tokenizer(CONTEXT, return_tensors="pt").input_ids
    cache = SqueezeCache(model, budget=0.3)
    with torch.no_grad(), cache.prefilling():
        model(context, past_key_values=cache)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "context.safetensors"
        cache.save(file)
        print(f"{file.stat().st_size / 1024:.0f} KiB; {cache.memory()}")
        loaded = SqueezeCache.load(model, file)
    answer = ask(model, tokenizer, context, loaded)
    print(answer)
    if ask(model, tokenizer, context, copy.deepcopy(cache)) == answer:
        print("the same answer as without the file")


if __name__ == "__main__":
    main()
