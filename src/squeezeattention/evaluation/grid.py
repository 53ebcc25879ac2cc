"""What an evaluation runs: its settings, and the pieces of work that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from ..allocators.base import check_p
from ..defaults import DEFAULT_POLICY
from ..errors import ConfigError
from ..policies import POLICIES
from ..tasks import Task
from .config import UNIFORM, Config, budget_text, takes
from .exercises import make_task
from .spec import Spec

QUESTIONS = ("hidden", "visible")
FULL = Config()
#: Fields that older records have not: they are recorded where they are not what they were then.
_LATER = {"chat": False}


@dataclass(frozen=True)
class SampleKey:
    """Names a sample; its text is made when it is needed."""

    task: str
    length: int
    seed: int
    index: int

    @property
    def id(self) -> str:
        return f"{self.task}/{self.length}/{self.seed}/{self.index}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


class Unit(NamedTuple):
    """One piece of work: a sample with one way to hold the cache. Gives one row of results."""

    sample: SampleKey
    config: Config

    @property
    def id(self) -> str:
        return f"{self.sample.id}/{self.config.id}"


@dataclass(frozen=True)
class Settings:
    """Everything that decides the results of a run, apart from the machine. All fields are JSON values.

    Raises what is wrong with them (:class:`ConfigError` and its kinds) when it is made; :meth:`make_tasks` what is
    wrong with the tasks.
    """

    model: str
    """What the model was loaded as: a name or a path."""
    tasks: tuple[str, ...]
    """Names, with options where wanted: ``text_file:path=notes.txt``."""
    lengths: tuple[int, ...] = (1024,)
    """Tokens of a sample."""
    samples: int = 8
    """Contexts of each task, length and seed."""
    seeds: tuple[int, ...] = (0,)
    policies: tuple[str, ...] = ("h2o", DEFAULT_POLICY)
    """Names, with options where wanted; ``h2o/squeeze`` is a policy with this allocator only."""
    allocators: tuple[str, ...] = ()
    """Names, with options where wanted: ``squeeze:outliers=clamp``, ``squeeze:signal=cosine``; empty: "uniform" and
    each policy's own."""
    budgets: tuple[str, ...] = ("0.1", "0.2", "0.4")
    ps: tuple[float, ...] = ()
    """For each allocator that has a ``p``; empty: its own default."""
    question: str = "hidden"
    """"hidden": asked token by token after the context was cut. "visible": part of the prompt that is cut."""
    dtype: str = "auto"
    device: str = "auto"
    chunk: int | None = None
    """Read prompts in pieces of so many tokens; ``None``: whole."""
    rows: int = 32
    """Most questions that are answered at once. Recorded: a batch rounds differently than a single row."""
    chat: bool = False
    """Context and question as a user's turn in the model's chat template; text that goes on stays as it is."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        object.__setattr__(self, "budgets", tuple(map(budget_text, self.budgets)))
        for name in ("tasks", "allocators"):
            object.__setattr__(self, name, tuple(str(Spec.parse(text)) for text in getattr(self, name)))
        pairs = [[str(Spec.parse(part)) for part in text.split("/", 1)] for text in self.policies]
        object.__setattr__(self, "policies", tuple("/".join(pair) for pair in pairs))
        object.__setattr__(self, "ps", tuple(map(check_p, self.ps)))
        self._check()

    def _check(self) -> None:
        for name in ("tasks", "lengths", "seeds", "policies", "allocators", "budgets", "ps"):
            values = getattr(self, name)
            if not values and name not in ("ps", "allocators"):
                raise ConfigError(f"an evaluation needs at least one of its {name}")
            if twice := sorted({str(value) for value in values if values.count(value) > 1}):
                raise ConfigError(f"{', '.join(twice)} is given more than once among the {name}")
        for name, least in (("samples", 1), ("rows", 1), ("chunk", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        if min(self.lengths) < 1:
            raise ConfigError(f"lengths are in tokens and must be at least 1, got {min(self.lengths)}")
        if self.question not in QUESTIONS:
            raise ConfigError(f'question must be "hidden" or "visible", got {self.question!r}')
        named = self.named_allocators()
        if self.ps and not any(takes(allocator, "p") for allocator in named):
            raise ConfigError(f"none of {', '.join(map(str, named))} has a p: name squeeze too, or leave ps out")
        for config in self.configs():
            config.check()

    def make_tasks(self) -> dict[str, Task]:
        """The tasks by the names they were given. Not part of making settings: a report needs no data."""
        return {name: make_task(name) for name in self.tasks}

    def configs(self) -> list[Config]:
        """The full cache, then every combination; an allocator without a ``p`` comes once, whatever ``ps``."""
        found = [FULL]
        for text in self.policies:
            name, _, only = text.partition("/")
            policy = Spec.parse(name)
            allocators = [Spec.parse(only)] if only else self._allocators_of(policy)
            for budget in self.budgets:
                for allocator in allocators:
                    found += [Config(policy, variant, budget) for variant in self._variants(allocator)]
        return list(dict.fromkeys(found))

    def named_allocators(self) -> list[Spec]:
        """Every allocator that was named, with a policy or for all."""
        pairs = [text.partition("/")[2] for text in self.policies]
        return [Spec.parse(text) for text in (*self.allocators, *filter(None, pairs))]

    def _allocators_of(self, policy: Spec) -> list[Spec]:
        """Those that were named, or those that say most of this policy."""
        own = POLICIES.create(policy.name, **dict(policy.options)).allocator
        return [Spec.parse(name) for name in self.allocators or (UNIFORM, own)]

    def _variants(self, allocator: Spec) -> list[Spec]:
        if self.ps and takes(allocator, "p"):
            return [allocator.having(p=p) for p in self.ps]
        return [allocator]

    def samples_of_all(self) -> list[SampleKey]:
        """Every sample. Indices come first, so that a run that is cut short has some of every task."""
        return [
            SampleKey(task, length, seed, index)
            for index in range(self.samples)
            for seed in self.seeds
            for length in self.lengths
            for task in self.tasks
        ]

    def units(self) -> Iterator[Unit]:
        """All work in its order: sample by sample, the full cache first."""
        configs = self.configs()
        return (Unit(sample, config) for sample in self.samples_of_all() for config in configs)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in _LATER or value != _LATER[name]
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        """From :meth:`to_dict`; raises :class:`ConfigError` for missing or unknown fields."""
        known = {field.name for field in fields(cls)}
        if wrong := sorted(known.symmetric_difference({**_LATER, **data})):
            raise ConfigError(f"these settings of an evaluation are missing or unknown: {', '.join(wrong)}")
        return cls(**data)
