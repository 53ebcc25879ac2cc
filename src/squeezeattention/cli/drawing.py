"""Options that say how tokens are drawn."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import ConfigError

Sample = Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", metavar="X", help="With --sample: above 1 is wilder, below 1 tamer. [1.0]"),
]
TopP = Annotated[
    float | None, typer.Option("--top-p", metavar="SHARE", help="With --sample: from the likeliest that fill it.")
]
TopK = Annotated[
    int | None, typer.Option("--top-k", min=1, metavar="N", help="With --sample: from the N likeliest tokens.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="With --sample: of the draws. [0]")]


def draws(
    sample: bool, temperature: float | None, top_p: float | None, top_k: int | None, seed: int | None
) -> dict[str, float | int]:
    """How tokens are drawn, for ``generate``; :class:`ConfigError` for what cannot be or would change nothing."""
    given = {"--temperature": temperature, "--top-p": top_p, "--top-k": top_k, "--seed": seed}
    if not sample and (idle := [name for name, value in given.items() if value is not None]):
        change = "change" if idle[1:] else "changes"
        raise ConfigError(f"{' and '.join(idle)} {change} nothing unless tokens are drawn: add --sample")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ConfigError(f"--temperature must be a number above 0, got {temperature:g}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"--top-p must be a share above 0 and at most 1, got {top_p:g}")
    if not sample:
        return {}
    # What the model's own files say of these would be used in silence.
    drawn: dict[str, float | int] = {"temperature": 1.0 if temperature is None else temperature}
    return {**drawn, "top_p": 1.0 if top_p is None else top_p, "top_k": 0 if top_k is None else top_k}
