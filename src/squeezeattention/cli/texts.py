"""The texts that are planned for: files, lines of files, samples of tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, InputError
from .console import ERR
from .inputs import Prompt, read_prompts, remark_on_length, tokenize

if TYPE_CHECKING:
    from ..evaluation import Settings
    from ..tasks import Task

#: The task of texts that were given as files.
FILES = "files"


@dataclass(frozen=True)
class Text:
    """A text, what it is one of, and its tokens."""

    source: str
    task: str
    tokens: list[int]


@dataclass
class Texts:
    """What was asked for, checked as far as it can be without a model."""

    prompts: list[Prompt]
    lines: list[tuple[str, Prompt]]
    settings: Settings | None
    tasks: dict[str, Task]

    @classmethod
    def of(
        cls,
        model_name: str,
        files: Sequence[Path] | None,
        more_files: Sequence[Path] | None,
        prompt: str | None,
        jsonl: Sequence[Path] | None,
        tasks: Sequence[str] | None,
        lengths: Sequence[int] | None,
        samples: int | None,
        seeds: Sequence[int] | None,
    ) -> Texts:
        """Read files (stdin if nothing else is given) and make tasks; raises what is wrong with them."""
        from ..evaluation import Settings

        if not tasks and (lengths or seeds or samples is not None):
            raise ConfigError("--length, --samples and --seed are of --task: give at least one task")
        paths = [*(files or ()), *(more_files or ())]
        elsewhere = bool(tasks or jsonl) and not paths and prompt is None
        prompts = [] if elsewhere else read_prompts(paths, prompt)
        lines = [line for path in jsonl or () for line in _read_lines(path)]
        settings = None
        if tasks:
            given: dict[str, Any] = {"lengths": tuple(lengths or ()), "samples": samples, "seeds": tuple(seeds or ())}
            chosen = {name: value for name, value in given.items() if value not in (None, ())}
            settings = Settings(model_name, tuple(tasks), **chosen)
        return cls(prompts, lines, settings, {} if settings is None else settings.make_tasks())

    def tokenized(self, model: Any, tokenizer: Any, *, truncate: bool = False, in_parts: bool = False) -> list[Text]:
        """All texts, those of one task together, cut to the model's positions if ``truncate``; of any length if they
        are to be read ``in_parts``.

        Samples have the size and the text that `squeeze eval` gives them.
        """
        found = [
            Text(one.source, task, tokenize(None if in_parts else model, tokenizer, one, truncate=truncate))
            for task, one in [*((FILES, one) for one in self.prompts), *self.lines]
        ]
        if self.settings is not None:
            with ERR.status("drawing samples"):
                found += self._samples(tokenizer, self.settings)
            remark_on_length(model, max(self.settings.lengths))
        order = list(dict.fromkeys(text.task for text in found))
        return sorted(found, key=lambda text: order.index(text.task))

    def _samples(self, tokenizer: Any, settings: Settings) -> Iterator[Text]:
        from ..evaluation.runner import make_sample, token_counter

        count = token_counter(tokenizer)
        for key in settings.samples_of_all():
            sample = make_sample(self.tasks[key.task], count, key)
            name = key.task if len(settings.lengths) == 1 else f"{key.task} {key.length}"
            yield Text(key.id, name, list(tokenizer(sample.context, verbose=False).input_ids))


def _read_lines(path: Path) -> Iterator[tuple[str, Prompt]]:
    """Tasks and prompts of a JSON Lines file; raises :class:`InputError` with the line."""
    [whole] = read_prompts([path], None)
    for number, line in enumerate(whole.text.splitlines(), 1):
        if not line.strip():
            continue
        place = f"{whole.source}:{number}"
        try:
            data = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place} is no JSON: {error}") from error
        text = next((data[name] for name in ("prompt", "text") if name in data), None) if _is_object(data) else data
        task = data.get("task", whole.source) if _is_object(data) else whole.source
        if not isinstance(text, str) or not text.strip() or not isinstance(task, str):
            raise InputError(
                f'{place} has no prompt: a line must be a text in quotes, or an object with a "prompt" and, if wanted, '
                'a "task"'
            )
        yield task, Prompt(place, text)


def _is_object(data: object) -> bool:
    return isinstance(data, dict)
