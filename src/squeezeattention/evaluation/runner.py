"""Running an evaluation: every piece of work once, whatever happens in between."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from .. import SqueezeError
from ..allocators import names_file
from ..errors import EvaluationError
from ..tasks.base import CountTokens, Sample, Task
from .config import Config
from .environment import describe_model, environment
from .exercises import score_answer, split_of
from .folder import Results
from .grid import SampleKey, Settings
from .measure import digest, measure

#: Told before each piece of work: how many are done, how many there are in all, and what comes next.
Progress = Callable[[int, int, str], None]


def run(
    model: Any,
    tokenizer: Any,
    settings: Settings,
    folder: Path,
    progress: Progress = lambda done, total, what: None,
    *,
    retry_failed: bool = False,
    part: tuple[int, int] = (1, 1),
) -> None:
    """Do what is not yet done of ``settings``, with a row in ``folder`` for each piece of work.

    ``part``: which of how many, (2, 8) for every eighth sample from the second on; :func:`merge` puts the folders of
    all of them together.

    A row that says that memory ran out or that a method refused counts as done unless ``retry_failed``; any other
    error ends the run where it comes, and what was done before stays.

    A folder of the same settings and model is gone on with, from wherever it was left; any other is an
    :class:`EvaluationError`. So is a sample whose text is not what it was. Tasks that do not fit, and models
    that no policy can carry, raise their own errors before anything is written.
    """
    tasks = settings.make_tasks()
    count = token_counter(tokenizer)
    _try_tasks(tasks, count, settings)
    _try_caches(model, settings)
    with Results(folder, describe_run(model, settings)) as results:
        digests = {
            SampleKey(row["task"], row["length"], row["seed"], row["index"]): row["digest"]
            for row in results.rows.values()
        }
        which, of = part
        mine = set(settings.samples_of_all()[which - 1 :: of])
        units = [unit for unit in settings.units() if unit.sample in mine]
        done = {name for name, row in results.rows.items() if row["error"] is None or not retry_failed}
        pending = [unit for unit in units if unit.id not in done]
        for key, group in groupby(pending, key=lambda unit: unit.sample):
            sample = make_sample(tasks[key.task], count, key)
            if digests.get(key, digest(sample)) != digest(sample):
                raise EvaluationError(
                    f"the text of the sample {key.id} is not what it was when {folder} was begun (another version "
                    "of Python or of the data?): start anew in another folder"
                )

            def next_is(config: Config, key: SampleKey = key) -> None:
                progress(len(done), len(units), f"{key.task} {key.length:,} {config.id.replace('/', ' ')}")

            configs = [unit.config for unit in group]
            for row in measure(model, tokenizer, settings, tasks[key.task], configs, key, sample, next_is):
                results.append(row)
                done.add(row["id"])
        progress(len(done), len(units), "done")


def key_of(row: Mapping[str, Any]) -> SampleKey:
    """The sample that a row is of."""
    return SampleKey(row["task"], row["length"], row["seed"], row["index"])


def describe_run(model: Any, settings: Settings) -> dict[str, Any]:
    """What ``run.json`` says, but for its format."""
    tasks = settings.make_tasks()
    return {
        "settings": settings.to_dict(),
        "model": describe_model(model),
        "data": {
            "split": {name: split_of(task) for name, task in tasks.items()},
            "metrics": {name: task.metric for name, task in tasks.items()},
            "items": [key.id for key in settings.samples_of_all()],
            **_files(settings),
        },
        "environments": [environment()],
    }


def _files(settings: Settings) -> dict[str, Any]:
    """Digests of the files that allocators are read from, if there are any."""
    paths = [allocator.name for allocator in settings.named_allocators() if names_file(allocator.name)]
    digests = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for path in paths}
    return {"files": digests} if digests else {}


def token_counter(tokenizer: Any) -> CountTokens:
    """Tokens of a text, no special ones."""
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def make_sample(task: Task, count: CountTokens, key: SampleKey) -> Sample:
    """The sample that ``key`` names."""
    return task.sample(count, key.length, key.seed, key.index)


def _try_tasks(tasks: dict[str, Task], count: CountTokens, settings: Settings) -> None:
    """Make the first and the last sample of each kind, and score no answer to it.

    A task that does not fit, has fewer samples or lacks its metric is a mistake in the settings, not a result.
    """
    for key in settings.samples_of_all():
        if key.index in (0, settings.samples - 1):
            sample = make_sample(tasks[key.task], count, key)
            if not sample.continuation:
                score_answer(tasks[key.task], sample, sample.questions[0], "")


def _try_caches(model: Any, settings: Settings) -> None:
    """Raise the model's own error if no policy can carry it; one that some carry fails in its rows alone."""
    failures = []
    for config in {config.policy: config for config in settings.configs() if config.policy}.values():
        try:
            config.make_cache(model, 0).detach()
            return
        except SqueezeError as error:
            failures.append(error)
    raise failures[0]
