"""A GGUF file unpacked by transformers into a plain model in fp32, and its tokenizer."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError, UnsupportedFeatureError
from ..extras import require

#: What a user can do who is told that the extra is missing.
INSTALL = 'pip install "squeezeattention[gguf]", or just: pip install gguf accelerate'


def read_config(file: Path) -> Any:
    """The config that is in a file, without the weights."""
    check_installed()
    from transformers import AutoConfig

    with _nothing_beside() as folder:
        return AutoConfig.from_pretrained(folder, gguf_file=str(file.resolve()), local_files_only=True)


def convert(file: Path, tell: Callable[[str], object]) -> tuple[Any, Any, list[str]]:
    """``(model, tokenizer, remarks)``; ``tell`` hears that it begins, once it is known that the file can be read.

    Raises :class:`InputError` for a file that lacks weights, and whatever transformers raises for what it cannot read.
    """
    config = read_config(file)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tell(f"unpacking {file.name}; this is done once for a file")
    with _nothing_beside() as folder, _bars_as_set():
        whole = {"gguf_file": str(file.resolve()), "local_files_only": True, "config": config}
        tokenizer = AutoTokenizer.from_pretrained(folder, **whole)
        # Otherwise weights may stay packed, for kernels that are looked for on the hub.
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), output_loading_info=True,
            **whole,
        )  # fmt: skip
    if missing := sorted(info["missing_keys"]):  # transformers would draw them at random, and say so in a log
        raise InputError(
            f"cannot load the model {file}: it lacks {len(missing)} of the model's weights, such as {missing[0]}; is "
            "it one part of several? Those have to be merged first (llama-gguf-split --merge)"
        )
    model.name_or_path = str(file)
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int):
        tokenizer.model_max_length = longest
    return model.eval(), tokenizer, _remarks(file, config)


def check_installed() -> None:
    """Raise :class:`MissingExtraError` or :class:`UnsupportedFeatureError` if GGUF files cannot be read here."""
    import transformers

    require("gguf", "gguf", INSTALL)
    require("accelerate", "gguf", INSTALL)  # transformers wants it for these files
    if not hasattr(transformers, "GgufConfig"):
        raise UnsupportedFeatureError(
            f"reading GGUF files needs transformers 5.17 or newer, and {transformers.__version__} is installed: it "
            "would mistake the special tokens of many files. Do: pip install --upgrade transformers"
        )


@contextmanager
def _nothing_beside() -> Iterator[str]:
    """An empty folder to load from: files that happen to lie beside the GGUF belong to whatever else is there."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder


@contextmanager
def _bars_as_set() -> Iterator[None]:
    """One of transformers' progress bars heeds no setting; here it heeds the one of the others."""
    from transformers import modeling_gguf_pytorch_utils as module
    from transformers.utils import logging

    before = getattr(module, "tqdm", None)
    if before is None or logging.is_progress_bar_enabled():
        yield
        return
    module.tqdm = functools.partial(before, disable=True)
    try:
        yield
    finally:
        module.tqdm = before


def _remarks(file: Path, config: Any) -> list[str]:
    """What the model lacks that the file has: transformers leaves the scaling of rotary positions out."""
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, tensors = read_gguf_metadata(str(file))
    kinds = [value for key, value in metadata.items() if key.endswith(".rope.scaling.type") and value != "none"]
    scaled = bool(kinds) or any(name.startswith(("rope_freqs", "rope_factors")) for name in tensors)
    used = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") != "default"
    if not scaled or used:
        return []
    return [
        f"{file.name} scales its rotary positions{f' ({kinds[0]})' if kinds else ''}, and transformers does not read "
        "that from GGUF files: expect worse answers, above all on long texts. The original model, as a folder, has it"
    ]
