"""What the user hands over: prompts, models, output paths."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..embedded import NAME
from ..errors import ConfigError, InputError
from ..loading import first_line, loading
from ..named import load_named, named_config
from ..positions import longest_text
from .console import notice


@dataclass(frozen=True)
class Prompt:
    """A text and where it came from."""

    source: str
    text: str


def with_question(prompt: Prompt, question: str | None) -> Prompt:
    """The text, an empty line, and what is asked about it; raises :class:`InputError` for an empty question."""
    if question is None:
        return prompt
    return Prompt(prompt.source, f"{prompt.text.rstrip()}\n\n{_checked('the text of --question', question).text}")


def read_prompts(files: list[Path], text: str | None) -> list[Prompt]:
    """The prompts of ``-f`` (``-`` is stdin), of ``-p``, or else of stdin; raises :class:`InputError`."""
    if files and text is not None:
        raise InputError("give the prompt once: with -f FILE or with -p TEXT")
    if text is not None:
        return [_checked("the text of -p", text)]
    if files:
        return [_read_stdin() if str(path) == "-" else _read_file(path) for path in files]
    if sys.stdin.isatty():
        raise InputError("no prompt: give -f FILE or -p TEXT, or pipe a text in")
    return [_read_stdin()]


def _read_stdin() -> Prompt:
    return _decoded("stdin", sys.stdin.buffer.read())


def _read_file(path: Path) -> Prompt:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the prompt {path}: {error.strerror or error}") from error
    return _decoded(str(path), data)


def _decoded(source: str, data: bytes) -> Prompt:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"cannot read the prompt {source}: it is not UTF-8 text")
    return _checked(source, text)


def _checked(source: str, text: str) -> Prompt:
    if not text.strip():
        raise InputError(f"the prompt is empty: {source}")
    return Prompt(source, text)


def tokenize(model: Any, tokenizer: Any, prompt: Prompt, new_tokens: int = 0, *, truncate: bool = False) -> list[int]:
    """The prompt's tokens; see :func:`fit` for those that are too many. ``model=None``: none are."""
    try:
        tokens: list[int] = list(tokenizer(prompt.text, verbose=False).input_ids)
    except Exception as error:  # of many kinds: a word that it has no token for, say
        raise InputError(f"{prompt.source}: the tokenizer cannot write it: {first_line(error)}") from error
    if not tokens:
        raise InputError(f"the prompt has no tokens: {prompt.source}")
    known = None if model is None else getattr(model.get_input_embeddings(), "num_embeddings", None)
    if known is not None and max(tokens) >= known:
        raise InputError(
            f"{prompt.source}: the tokenizer writes it with token {max(tokens)}, and the model knows {known} tokens: "
            "they do not belong together"
        )
    return tokens if model is None else fit(model, tokens, prompt.source, new_tokens, truncate=truncate)


def fit(model: Any, tokens: list[int], source: str, new_tokens: int = 0, *, truncate: bool = False) -> list[int]:
    """``tokens`` if they and ``new_tokens`` have a position each; else their newest, with a word, if ``truncate``.

    Raises :class:`InputError` otherwise: beyond its positions a model fails or talks nonsense, with any cache.
    """
    longest = longest_text(model)
    if longest is None or len(tokens) + new_tokens <= longest:
        return tokens
    have = f"{source}: {len(tokens)} tokens" + (f" and {new_tokens} new ones" if new_tokens else "")
    room = longest - new_tokens
    if not truncate or room < 1:
        less = "ask for fewer new tokens (-n)" if new_tokens else "give a shorter text"
        raise InputError(
            f"{have} are more than the {longest} positions that the model was made for; {less}"
            + (", or let --truncate keep the text's end" if room >= 1 else "")
        )
    notice(f"{have} are more than the model's {longest} positions: the last {room} tokens of the text are read")
    return tokens[-room:]


def chat_tokens(
    model: Any, tokenizer: Any, prompt: Prompt, system: str | None, new_tokens: int = 0, *, truncate: bool = False
) -> list[int]:
    """The prompt as a user's turn, in the tokenizer's chat template, up to where the answer begins.

    Of a text that is too long the newest tokens, with a word, if ``truncate``: the template stays whole. Raises as
    :func:`fit` does, and :class:`InputError` if the template refuses the turns.
    """
    from ..chat.template import first_turns, render, token_ids

    def tokens_of(text: str) -> list[int]:
        return token_ids(tokenizer, render(tokenizer, first_turns(text, system)))

    tokens, longest = tokens_of(prompt.text), longest_text(model)
    if truncate and longest is not None and len(tokens) + new_tokens > longest:
        text = token_ids(tokenizer, prompt.text)
        room = len(text)
        # What is cut may have other tokens at its new beginning.
        while 0 < (over := len(tokens) + new_tokens - longest) < room:
            room -= over
            tokens = tokens_of(tokenizer.decode(text[-room:], clean_up_tokenization_spaces=False))
        if over <= 0:
            notice(
                f"{prompt.source}: {len(text)} tokens, the chat template's and {new_tokens} new ones are more than the "
                f"model's {longest} positions: the last {room} tokens of the text are read"
            )
    return fit(model, tokens, prompt.source, new_tokens)


def remark_on_length(model: Any, tokens: int) -> None:
    """A remark where samples of so many tokens are longer than the model was made for."""
    longest = longest_text(model)
    if longest is not None and tokens > longest:
        notice(f"{tokens} tokens are more than the {longest} positions that the model was made for")


def load_model(name: str, dtype: str = "auto", device: str = "auto") -> tuple[Any, Any]:
    """``(model, tokenizer)`` of "embedded", "smollm2", a GGUF file, a local folder or a name on the hub.

    Raises :class:`InputError` if it cannot be loaded, :class:`MissingExtraError` if that needs a package that is not
    there, :class:`ConfigError` for an unknown dtype or device.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    if name == NAME or not sys.stderr.isatty():  # a bar for nobody, or of a tenth of a second
        logging.disable_progress_bar()
    wanted = dtype_of(dtype)
    place = device_of(device)
    named = load_named(name, None if wanted == "auto" else wanted, warn=notice, tell=notice)
    if named is not None:
        return named[0].to(place), named[1]
    with loading(name, hint=_HINT):
        _check_files(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        if not len(tokenizer):
            raise InputError(f"cannot load the model {name}: its tokenizer has no tokens")
        model = AutoModelForCausalLM.from_pretrained(name, dtype=wanted).eval()
    return model.to(place), tokenizer


_HINT = f" (give {NAME!r}, 'smollm2', a folder of a causal language model, a .gguf file, or a name on the hub)"
#: Files of a tokenizer, one of which is enough; ``tokenizer_config.json`` alone is none.
_TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json",
)  # fmt: skip


def _check_files(name: str) -> None:
    """Say which part of a local model is missing; names on the hub are left to transformers."""
    folder = Path(name)
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        packed = next(iter(sorted(folder.glob("*.gguf"))), None)
        raise InputError(
            f"cannot load the model {name}: the folder has no config.json, so it is no transformers model"
            + ("" if packed is None else f"; give the GGUF file itself: {packed}")
        )
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise InputError(
            f"cannot load the model {name}: the folder has no tokenizer (none of {', '.join(_TOKENIZERS)}); save it "
            "there with tokenizer.save_pretrained(...)"
        )


def load_config(name: str) -> Any:
    """A model's text config, without its weights. Raises :class:`InputError` if it cannot be loaded."""
    from transformers import AutoConfig

    config = named_config(name)
    if config is None:
        with loading(name, hint=_HINT):
            config = AutoConfig.from_pretrained(name)
    return config.get_text_config()


def dtype_of(name: str) -> Any:
    """A torch dtype by its name, or "auto"; raises :class:`ConfigError`."""
    import torch

    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name != "auto" and name not in names:
        raise ConfigError(f"unknown dtype {name!r}; choose one of: auto, {', '.join(names)}")
    return names.get(name, "auto")


def device_of(name: str) -> Any:
    """A device that can be used, by its name; "auto" is a GPU if there is one. Raises :class:`ConfigError`."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"cannot use the device {name!r}: {reason}") from error
    if device.type == "meta":
        raise ConfigError("cannot use the device 'meta': tensors there have sizes and nothing else")
    return device


def check_target(path: Path | None) -> None:
    """Before any work is done: :class:`InputError` if a file cannot be put there."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"cannot write to {path}: it is a folder")
    if not path.parent.is_dir():
        raise InputError(f"cannot write to {path}: there is no folder {path.parent}")
    if path.exists():
        _try_to_write(path, lambda: path.open("ab").close())
    else:
        _try_in_folder(path.parent, path)


def check_folder(path: Path) -> None:
    """Before any work is done: :class:`InputError` if a folder cannot be made there, or nothing put into it."""
    if path.exists() and not path.is_dir():
        raise InputError(f"cannot write to the folder {path}: it is a file")
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise InputError(f"cannot write to the folder {path}: {there} is a file")
    _try_in_folder(there, path)


def _try_in_folder(folder: Path, target: Path) -> None:
    _try_to_write(target, lambda: tempfile.TemporaryFile(dir=folder).close())


def _try_to_write(target: Path, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except OSError as error:
        raise InputError(f"cannot write to {target}: {error.strerror or error}") from error
