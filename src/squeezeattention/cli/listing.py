"""What there is to choose from: models, policies, allocators, signals."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rich.table import Table

from ..allocators import ALLOCATORS
from ..datasets import DATASETS
from ..defaults import DEFAULT_ALLOCATOR, DEFAULT_POLICY
from ..tasks import TASKS, Task
from . import options
from .console import OUT, print_json

if TYPE_CHECKING:
    from ..registry import Registry


class Family(NamedTuple):
    """Architectures that are listed in one line."""

    title: str
    traits: str
    tested: tuple[str, ...]  # names in squeezeattention.testing.FAMILIES


FAMILIES = (
    Family("Llama 2 and 3", "MHA or GQA, RoPE", ("llama", "llama-mha")),
    Family("Mistral", "GQA, RoPE, with or without a native sliding window", ("mistral", "mistral-window")),
    Family("Mixtral", "GQA, RoPE, mixture of experts", ("mixtral",)),
    Family(
        "Falcon",
        "MQA, GQA or MHA, RoPE, parallel attention and MLP or one after the other",
        ("falcon-7b", "falcon-new", "falcon-mha"),
    ),
    Family("OPT", "MHA, learned positions", ("opt",)),
    Family(
        "GPT-NeoX, Pythia",
        "MHA, partial RoPE, parallel attention and MLP or one after the other",
        ("gpt-neox", "gpt-neox-sequential"),
    ),
    Family("GPT-2", "MHA, learned positions", ("gpt2",)),
    Family("Qwen2, Qwen2.5", "GQA, RoPE, biases", ("qwen2",)),
    Family("Qwen3", "GQA, RoPE, norms on queries and keys, optional window", ("qwen3", "qwen3-window")),
    Family("Qwen3-MoE", "GQA, RoPE, mixture of experts", ("qwen3-moe",)),
    Family("Gemma 2", "GQA, every other layer windowed, capped logits", ("gemma2",)),
    Family("Gemma 3 (text)", "GQA, mostly windowed layers, two RoPE bases", ("gemma3",)),
    Family("Phi-1, Phi-2", "MHA or GQA, partial RoPE, parallel attention and MLP", ("phi",)),
    Family("Phi-3, Phi-4", "GQA, RoPE, optional window", ("phi3", "phi3-window")),
    Family("StableLM", "MHA or GQA, partial RoPE", ("stablelm",)),
    Family("Granite", "GQA, RoPE, scaled residuals", ("granite",)),
    Family("OLMo 2", "MHA or GQA, RoPE, norms after attention", ("olmo2",)),
    Family("Cohere Command R", "GQA, RoPE, parallel attention and MLP", ("cohere",)),
    Family("gpt-oss", "GQA, RoPE, mixture of experts, learned sinks, every other layer windowed", ("gpt-oss",)),
    Family("StarCoder2", "GQA, RoPE, optional window", ("starcoder2",)),
    Family("DeepSeek-V3", "MLA (expanded keys and values are held), mixture of experts", ("deepseek-v3",)),
)

REFUSED = (
    ("BLOOM, MPT, Falcon-RW", "ALiBi or attention of their own: the bias depends on where a token is stored"),
    ("T5, BART, Whisper, ...", "encoder-decoder models: only decoder-only ones are supported"),
    (
        "GPT-J, GPT-Neo, CodeGen, XGLM",
        "compute attention themselves, not through transformers' AttentionInterface",
    ),
    ("Mamba, Jamba, RecurrentGemma, Qwen3-Next", "recurrent or linear layers have no tokens to evict"),
    ("Gemma 3n", "layers that share one another's keys and values"),
)


def models(as_json: options.Json = False) -> None:
    """Model families that are carried exactly, and those that are refused."""
    if as_json:
        print_json({
            "supported": [{"family": f.title, "traits": f.traits, "tested": f.tested} for f in FAMILIES],
            "refused": [{"family": name, "why": why} for name, why in REFUSED],
        })  # fmt: skip
        return
    supported, refused = Table(header_style="bold"), Table(header_style="bold")
    supported.add_column("supported", no_wrap=True)
    supported.add_column("traits")
    for family in FAMILIES:
        supported.add_row(family.title, family.traits)
    refused.add_column("refused")
    refused.add_column("why")
    for name, why in REFUSED:
        refused.add_row(name, why)
    OUT.print(supported)
    OUT.print(
        "Each is tested against a plain reference with a tiny random model. Others work too if their "
        "attention goes through transformers' AttentionInterface; what cannot be carried exactly is refused "
        "with the reason."
    )
    OUT.print(refused)


def tasks(include: options.Include = None, as_json: options.Json = False) -> None:
    """Tasks of `squeeze eval`: generated ones, and data sets (from a path or the hub)."""
    kinds = {"task": _task_kinds(TASKS), "data set": _task_kinds(DATASETS)}
    if as_json:
        print_json({
            name: {"kind": title, "metric": kind.metric, "summary": kind.summary, "options": _options(kind)}
            for title, found in kinds.items()
            for name, kind in found.items()
        })  # fmt: skip
        return
    for title, found in kinds.items():
        table = Table(header_style="bold")
        table.add_column(title, no_wrap=True)
        table.add_column("metric", no_wrap=True)
        table.add_column("")
        own = title == "task"  # those of data sets are the same for all
        if own:
            table.add_column("options")
        for name, kind in found.items():
            table.add_row(name, kind.metric, kind.summary, *([_options_text(_options(kind))] if own else []))
        OUT.print(table)
    shared = _options_text(_options(next(iter(kinds["data set"].values()))))
    OUT.print("Options are written behind the name: NAME:OPTION=VALUE,OPTION=VALUE.")
    OUT.print(f"A data set is read from the hub, or from a path: NAME:path=FILE. Options of each: {shared}.")


def _task_kinds(registry: Registry[Any]) -> dict[str, type[Task]]:
    return {name: cast("type[Task]", registry.factory(name)) for name in registry}


def policies(include: options.Include = None, as_json: options.Json = False) -> None:
    """Rules for which tokens a layer keeps."""
    from ..policies import POLICIES

    _list(POLICIES, DEFAULT_POLICY, as_json)


def allocators(include: options.Include = None, as_json: options.Json = False) -> None:
    """Rules that divide the cache among the layers."""
    _list(ALLOCATORS, DEFAULT_ALLOCATOR, as_json)


def signals(include: options.Include = None, as_json: options.Json = False) -> None:
    """Measures of how much a layer matters."""
    from ..signals import SIGNALS

    _list(SIGNALS, ALLOCATORS.create(DEFAULT_ALLOCATOR).signal, as_json)


def _list(registry: Registry[Any], default: str, as_json: bool) -> None:
    factories = {name: registry.factory(name) for name in registry}
    if as_json:
        print_json({
            name: {"summary": _summary(factory), "default": name == default, "options": _options(factory)}
            for name, factory in factories.items()
        })  # fmt: skip
        return
    table = Table(header_style="bold")
    table.add_column(registry.kind, no_wrap=True)
    table.add_column("")
    table.add_column("options")
    for name, factory in factories.items():
        mark = " (default)" if name == default else ""
        table.add_row(f"{name}{mark}", _summary(factory), _options_text(_options(factory)))
    OUT.print(table)


#: Markup of docstrings that a terminal does not show: ``code`` and :role:`~some.name`.
_CODE, _ROLE = re.compile(r"``([^`]*)``"), re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)(?:\(\))?`")


def _summary(factory: Any) -> str:
    """First sentence or line of a factory's docstring, as plain text."""
    first = (inspect.getdoc(factory) or "").partition("\n\n")[0].replace("\n", " ")
    sentence = re.match(r".*?[.](?=\s|$)", first)
    return _CODE.sub(r"\1", _ROLE.sub(r"\1", sentence[0] if sentence else first))


def _options(factory: Any) -> dict[str, Any]:
    """What can be given to a factory by name, and what it is if it is not given (but for what training sets)."""
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if name != "held_out" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            default = None if parameter.default is parameter.empty else parameter.default
            found[name] = default if isinstance(default, str | int | float | bool | None) else str(default)
    return found


def _options_text(found: Mapping[str, Any]) -> str:
    return ", ".join(name if value is None else f"{name}={value}" for name, value in found.items())
