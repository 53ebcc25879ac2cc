"""``squeeze eval``: how well a model answers with full and squeezed caches, on tasks and data sets."""

from __future__ import annotations

import dataclasses
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from typer.core import TyperGroup

from ..embedded import NAME
from ..errors import ConfigError, EvaluationError
from ..extras import require
from . import options
from .console import OUT, notice, print_json, progress_bar
from .inputs import check_folder, load_model, remark_on_length
from .stability import STUDY_LEGEND, study_table

if TYPE_CHECKING:
    from .. import evaluation
    from ..evaluation.config import Config

_RUN = "run"


class _RunUnlessNamed(TyperGroup):
    """``squeeze eval report DIR`` is a command; anything else belongs to the one that runs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args if named else [_RUN, *args])


app = typer.Typer(cls=_RunUnlessNamed, rich_markup_mode=None)

Out = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the results go, or go on.")]


@app.command(_RUN)
def evaluate(
    model_name: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="As --model; the embedded model if neither is given.")
    ] = None,
    model_option: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help='"embedded", "smollm2", a folder, FILE.gguf, or a name on the hub.'
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", metavar="TASK", help="See `squeeze tasks`; NAME:OPTION=VALUE sets options."),
    ] = None,
    lengths: Annotated[list[int] | None, typer.Option("--length", metavar="TOKENS", help="Tokens of a sample.")] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", help="Contexts of each task, length and seed.")
    ] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seeds", "--seed", metavar="N", help="Draw the samples.")] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="NAME", help="Which tokens stay; NAME/ALLOCATOR: with this allocator only."),
    ] = None,
    allocators: Annotated[
        list[str] | None,
        typer.Option("--allocator", metavar="NAME", help="Which layers get more: NAME, or NAME:OPTION=VALUE,..."),
    ] = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option("--budget", "-b", metavar="BUDGET", help="Share (0.2, 20%), tokens (256) or bytes (512MiB)."),
    ] = None,
    ps: Annotated[
        list[float] | None, typer.Option("--p", metavar="SHARE", help="For allocators that have a p; several: a sweep.")
    ] = None,
    question: Annotated[
        str | None,
        typer.Option("--question", metavar="hidden|visible", help="Asked after the cut, or part of what is cut."),
    ] = None,
    out: Out = Path("squeeze-eval"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A small grid: minutes with the embedded model or SmolLM2.")
    ] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    chunk: options.ChunkSize = None,
    include: options.Include = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what ran out of memory or was refused.")
    ] = False,
    part: Annotated[
        str, typer.Option("--part", metavar="I/N", help="One of N parts, for several cores or GPUs; see `eval merge`.")
    ] = "1/1",
    as_json: options.Json = False,
) -> None:
    """Evaluate full and squeezed caches on tasks. Most options can be given several times.

    A run that was stopped goes on when the same command is given again. Exit code 1: rows failed.

    `squeeze eval merge -o FOLDER PART...` puts together what was run in parts.

    `squeeze eval report FOLDER` draws what a folder holds.

    `squeeze eval plans FOLDER` says how stable the plans were.

    `squeeze eval rerun FOLDER` repeats a run and compares.
    """
    from .. import evaluation
    from ..evaluation import presets

    require("matplotlib", "plot")  # before hours of work, not after
    check_folder(out)
    share = evaluation.part_of(part)
    name = _model_of(model_name, model_option)
    base = presets.quick(name) if quick else presets.standard(name)
    given: dict[str, Any] = {
        "tasks": tasks, "lengths": lengths, "samples": samples, "seeds": seeds, "policies": policies,
        "allocators": allocators, "budgets": budgets, "ps": ps, "question": question, "chunk": chunk,
    }  # fmt: skip
    chosen = {field: value for field, value in given.items() if value is not None and value != []}
    settings = dataclasses.replace(base, dtype=dtype, device=device, **chosen)
    _work(settings, out, retry_failed=retry_failed, part=share)
    report = evaluation.write_report(out)
    _show(report, as_json)
    _exit_if_failed(report.summary)


def _model_of(argument: str | None, option: str | None) -> str:
    if argument is not None and option is not None and argument != option:
        raise ConfigError(f"two models were given, {argument!r} and --model {option!r}: give one")
    return argument or option or NAME


def _exit_if_failed(summary: dict[str, Any]) -> None:
    """Exit code 1 if rows failed, and a word on them: their scores of 0 are no results."""
    failed = sum(error["n"] for error in summary["errors"])
    if failed:
        first = summary["errors"][0]
        notice(
            f"{failed} of {summary['rows']} rows failed and count as 0 (first {first['first']}: {first['type']}: "
            f"{first['text']}); the same command with --retry-failed tries them again"
        )
        raise typer.Exit(1)


def _work(
    settings: evaluation.Settings, out: Path, *, retry_failed: bool = False, part: tuple[int, int] = (1, 1)
) -> None:
    """Load the model and run, with a bar on stderr."""
    from .. import evaluation

    settings.make_tasks()  # what is wrong with them is told before a model is loaded
    model, tokenizer = load_model(settings.model, settings.dtype, settings.device)
    remark_on_length(model, max(settings.lengths))
    at = ""

    def step(done: int, total: int, what: str) -> None:
        nonlocal at
        at = what
        progress(done, total, what)

    try:
        with progress_bar() as progress:
            evaluation.run(model, tokenizer, settings, out, step, retry_failed=retry_failed, part=part)
    except (Exception, KeyboardInterrupt):
        if at:
            notice(f"stopped at {at}; what is done is in {out}, and the same command goes on from there")
        raise


def _show(report: evaluation.Report, as_json: bool) -> None:
    """One JSON object, or tables, sentences and paths."""
    from .. import evaluation

    summary = report.summary
    if as_json:
        print_json({**summary, "files": [str(path) for path in report.files]})
        return
    for title, cells in evaluation.first_tables(summary):
        OUT.print(title, style="bold")
        OUT.print(evaluation.results_table(cells, OUT.width))
    OUT.print(evaluation.LEGEND, style="dim")
    if len({cell["task"] for cell in summary["results"]}) > 1:
        OUT.print("\nMean score over policies and budgets", style="bold")
        for table in evaluation.overview_tables(summary, OUT.width):
            OUT.print(table)
    if summary["against_uniform"]:
        OUT.print(evaluation.wins_table(summary["against_uniform"]))
        OUT.print(evaluation.WIN_LEGEND, style="dim")
    for text in evaluation.verdicts(summary):
        OUT.print(Padding(text, (1, 0, 0, 0)))
    OUT.print()
    for path in report.files:
        OUT.print(str(path), soft_wrap=True)


@app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Results of `squeeze eval`, finished or not.")],
    as_json: options.Json = False,
) -> None:
    """Draw what a folder of results holds: tables, pictures, and report.html with everything in it."""
    from .. import evaluation

    _show(evaluation.write_report(folder), as_json)


@app.command("merge")
def merge(
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="Folders of `squeeze eval --part I/N`.")],
    out: Out = Path("squeeze-eval"),
    as_json: options.Json = False,
) -> None:
    """Put together what was run in parts, in a new folder, and draw it."""
    from .. import evaluation

    require("matplotlib", "plot")
    check_folder(out)
    evaluation.merge(parts, out)
    _show(evaluation.write_report(out), as_json)


@app.command("plans")
def plans(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Results of `squeeze eval`, finished or not.")],
    as_json: options.Json = False,
) -> None:
    """How stable the plans of a run were, from prompt to prompt and task to task. See also `squeeze plan`."""
    from .. import evaluation

    found = evaluation.plan_studies(folder)
    if as_json:
        print_json({"folder": str(folder), "studies": [one.to_dict() for one in found]})
        return
    for length, group in groupby(found, key=lambda one: one.length):
        OUT.print(f"Plans, {length:,} tokens", style="bold")
        OUT.print(study_table([(_config_label(one.config), one.study) for one in group]))
    OUT.print(STUDY_LEGEND, style="dim")


def _config_label(config: Config) -> str:
    from ..evaluation.columns import budget_label, label

    return f"{label(str(config.policy))} {budget_label(config.budget)} {label(str(config.allocator))}"


@app.command("rerun")
def rerun(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Results of `squeeze eval`.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where the new results go. [FOLDER-rerun]")
    ] = None,
    include: options.Include = None,
    as_json: options.Json = False,
) -> None:
    """Repeat a run with its recorded settings in a new folder; exit code 1 if the scores do not agree."""
    from .. import evaluation
    from ..evaluation.folder import read_run

    settings = evaluation.Settings.from_dict(read_run(folder)["settings"])
    target = out or folder.with_name(f"{folder.resolve().name}-rerun")
    if target.resolve() == folder.resolve():
        raise EvaluationError(f"a repetition of {folder} needs a folder of its own: give --out another one")
    check_folder(target)
    _work(settings, target)
    summary = evaluation.write_summary(target)
    agreement = evaluation.compare(folder, target)
    if as_json:
        print_json({**agreement.to_dict(), "folder": str(target)})
    else:
        OUT.print(f"{agreement} ({target})", soft_wrap=True)
    if not agreement.agrees:
        raise typer.Exit(1)
    _exit_if_failed(summary)
