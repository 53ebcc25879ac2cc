"""Options that several commands share, and their check before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..allocators import resolve_allocator
from ..defaults import CHAT_BUDGET, DEFAULT_ALLOCATOR, DEFAULT_BUDGET, DEFAULT_POLICY
from ..errors import ConfigError
from ..plan import Budget
from .include import include

if TYPE_CHECKING:
    from ..allocators import Allocator
    from ..plan import BudgetPlan
    from ..policies import EvictionPolicy

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help='"embedded" (in the package), "smollm2" (see docs/using.md), a folder, FILE.gguf, or a name on the hub.',
    ),
]
PromptText = Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt itself.")]
MoreFiles = Annotated[list[Path] | None, typer.Argument(metavar="[FILES]...", help="Texts, like -f.")]
Files = Annotated[
    list[Path] | None,
    typer.Option("--file", "-f", metavar="FILES...", help="A text to read (- is stdin); any number."),
]
JsonLines = Annotated[
    list[Path] | None,
    typer.Option(
        "--jsonl", metavar="FILE", help='A text a line, in JSON: a string, or an object with "prompt" (and "task").'
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", metavar="TASK", help="Samples of it; see `squeeze tasks`. Any number of tasks."),
]
Lengths = Annotated[list[int] | None, typer.Option("--length", metavar="TOKENS", help="Tokens of a sample. [1024]")]
Samples = Annotated[int | None, typer.Option("--samples", metavar="N", help="Of each task, length and seed. [8]")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", "--seeds", metavar="N", help="Draw the samples. [0]")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the plan as JSON, for --allocator.")
]
_BUDGETS = "tokens per layer (256), or bytes (512MiB)"
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget", "-b", metavar="BUDGET",
        help=f"Size of the cache: share of the prompt (0.2, 20%), {_BUDGETS}. [{DEFAULT_BUDGET}]",
    ),
]  # fmt: skip
ChatBudget = Annotated[
    str | None,
    typer.Option(
        "--budget", "-b", metavar="BUDGET",
        help=f"Size of the cache: share of all turns (0.2, 20%), {_BUDGETS}. [{CHAT_BUDGET}]",
    ),
]  # fmt: skip
Policy = Annotated[str, typer.Option("--policy", metavar="NAME", help="Which tokens stay; see `squeeze policies`.")]
AllocatorName = Annotated[
    str | None,
    typer.Option(
        "--allocator",
        metavar="NAME",
        help="Which layers and heads get more; see `squeeze allocators`. Or what `squeeze plan`, `squeeze oracle` or "
        "`squeeze calibrate` saved. "
        f"[the policy's own, {DEFAULT_ALLOCATOR} for {DEFAULT_POLICY}; squeeze with --p or --outliers]",
    ),
]
SignalName = Annotated[
    str | None,
    typer.Option(
        "--signal", metavar="NAME", help="What tells layers apart; see `squeeze signals`. Default: the allocator's own."
    ),
]
P = Annotated[
    float | None,
    typer.Option("--p", metavar="SHARE", help="Share of the average budget that the cut layers keep (0.35)."),
]
Outliers = Annotated[
    str | None,
    typer.Option("--outliers", metavar="keep|clamp", help="Outliers of the signal: as published, or clamped."),
]
Positions = Annotated[
    str | None,
    typer.Option("--positions", metavar="original|cache", help="Positions of StreamingLLM's sinks."),
]
Sinks = Annotated[int | None, typer.Option("--sinks", metavar="TOKENS", min=0, help="Leading tokens that stay. [4]")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="NAME", help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")]
Prefill = Annotated[
    str,
    typer.Option(
        "--prefill", metavar="exact|bounded",
        help="exact: each token sees all before it. bounded: in pieces that are cut at once, for prompts too long.",
    ),
]  # fmt: skip
ChunkSize = Annotated[
    int | None,
    typer.Option("--chunk-size", min=1, metavar="TOKENS", help="Read the prompt in pieces of so many tokens."),
]
Compiled = Annotated[bool, typer.Option("--compile", help="Decode through torch.compile: slow to start, faster steps.")]
Kernels = Annotated[
    str, typer.Option("--kernels", metavar="auto|torch|triton", help="What computes attention; auto: triton on a GPU.")
]
Truncate = Annotated[
    bool, typer.Option("--truncate", help="Of a text beyond the model's positions, read the end instead of refusing.")
]
Include = Annotated[
    list[Path] | None,
    typer.Option(
        "--include", metavar="FILE.py", callback=include,
        help="Run it first: it may register policies, allocators, signals and tasks of your own. Any number.",
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead.")]


def policy_of(text: str) -> str | EvictionPolicy:
    """The policy of ``--policy``: a name, or one with options (``echo:replay=512``) as an object.

    Raises :class:`ConfigError`.
    """
    if ":" not in text:
        return text
    from ..evaluation.spec import Spec
    from ..policies import POLICIES

    spec = Spec.parse(text)
    return POLICIES.create(spec.name, **dict(spec.options))


def check(
    budget: str | None,
    policy: str | EvictionPolicy,
    allocator: str | BudgetPlan | Allocator | None,
    p: float | None,
    outliers: str | None,
    signal: str | None = None,
) -> None:
    """Before a model is loaded: raise what SqueezeCache would raise about these."""
    from ..cache.options import check_used
    from ..policies import POLICIES
    from ..signals import SIGNALS

    if budget is not None:
        Budget.parse(budget)
    if isinstance(policy, str):
        POLICIES.factory(policy)
    if signal is not None:
        SIGNALS.factory(signal)
    check_used(resolve_allocator(allocator, p=p, outliers=outliers), budget=budget, signal=signal)


def memory_bytes(text: str) -> int:
    """Bytes of ``--memory``; raises :class:`ConfigError`."""
    found = Budget.parse(text)
    if found.kind != "bytes":
        raise ConfigError(f'--memory is a number of bytes with a unit, such as "8GiB", got {text!r}')
    return int(found.value)
