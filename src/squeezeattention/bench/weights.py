"""How many bytes of weights a decode step has to read."""

from __future__ import annotations

from typing import Any


def step_weight_bytes(model: Any, batch: int) -> int:
    """Bytes of the parameters that a step of ``batch`` tokens reads, each once.

    Of a table of embeddings it reads a few rows, unless the output shares it. Of a mixture of experts it reads those
    that are chosen: with tokens that choose on their own, ``1 - (1 - k / E) ** batch`` of them.
    """
    config = model.config.get_text_config()
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    share = 1.0 if not experts or not chosen else 1 - (1 - chosen / experts) ** batch
    head = model.get_output_embeddings()
    kept = None if head is None else head.weight.data_ptr()
    tables = {module.weight.data_ptr() for module in model.modules() if type(module).__name__.endswith("Embedding")
              and hasattr(module, "weight")}  # fmt: skip
    total = 0.0
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() in tables and parameter.data_ptr() != kept:
            continue
        total += parameter.nbytes * (share if ".experts." in name else 1.0)
    return round(total)
