"""The embedded model: a small Llama that came with the package, for demos and tests without a download.

8 layers, width 128, 4 query and 2 KV heads of 32, 10,240-token byte-level BPE, fp16 on disk. Trained by ``training/``
on the standard library's sources and on generated text in which things are looked up; see docs/embedded-model.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SqueezeError

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parent
#: The name that the command line takes for it.
NAME = "embedded"


def load_embedded(dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """``(model, tokenizer)``: a ``LlamaForCausalLM`` in evaluation mode and its fast tokenizer, offline.

    ``dtype``: fp32 if not given.

    Raises :class:`~squeezeattention.errors.SqueezeError` if the installation lacks the files.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    missing = [n for n in ("config.json", "model.safetensors", "tokenizer.json") if not (FOLDER / n).exists()]
    if missing:
        raise SqueezeError(f"the embedded model's {', '.join(missing)} is missing from {FOLDER}; reinstall the package")
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten below
        model = LlamaForCausalLM(LlamaConfig.from_json_file(FOLDER / "config.json"))
    model.load_state_dict(load_file(FOLDER / "model.safetensors"), strict=False)  # the output layer is tied
    model = model.to(torch.float32 if dtype is None else dtype).eval()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(FOLDER / "tokenizer.json"),
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        pad_token="<|pad|>",
        padding_side="left",
        model_max_length=model.config.max_position_embeddings,
    )
    return model, tokenizer
