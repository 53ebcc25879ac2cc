"""A backend of lm-evaluation-harness: ``--model squeeze --model_args pretrained=...,budget=0.2,policy=h2o``.

Releases of the harness that know the entry-point group ``lm_eval.models`` find it by themselves. For others
(0.4.13 is one) this module is the command: ``python -m squeezeattention.integrations.lm_eval run --model squeeze
...`` takes everything that ``lm_eval`` takes; in Python, importing it is enough. See docs/evaluation.md.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .. import SqueezeCache
from ..defaults import DEFAULT_POLICY
from ..errors import ConfigError, InputError, SqueezeError
from ..extras import require
from ..loading import loading
from ..named import is_named, load_named
from .caches import CacheMaker
from .scoring import Group, Score, Scorer, Text

require("lm_eval.models.huggingface", "lm-eval")  # the typed error, before the imports that would raise their own

from lm_eval.api.registry import model_registry  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.models.utils_hf import get_dtype  # noqa: E402
from tqdm import tqdm  # noqa: E402

#: What ``--model`` calls it.
NAME = "squeeze"
_LOG = logging.getLogger(__name__)
_Of = TypeVar("_Of")

#: Strings of a request (``None`` in rolling windows), tokens of its context, tokens of its continuation.
Request = tuple[tuple[str, str] | None, list[int], list[int]]


@dataclass
class Held:
    """Bytes of keys and values, summed over all batches."""

    bytes: int = 0
    full_bytes: int = 0
    """What full caches held at the same points."""

    def add(self, cache: SqueezeCache) -> None:
        memory = cache.memory()
        self.bytes += memory.bytes
        self.full_bytes += memory.full_bytes


class SqueezeLM(HFLM):
    """The harness's ``hf`` backend, with a :class:`SqueezeCache` under everything that it reads.

    Generation: the prompt is cut where it ends, and each step keeps it there. Log-likelihood: the context is
    read and cut, then the continuation goes in token by token (see :mod:`.scoring`). Rolling log-likelihood, and
    an empty context, have no prompt to cut: the text is read until the cache is full, then token by token, and a
    share is of the text. A batch has one plan; batch size 1 gives every prompt its own.

    Args:
        pretrained: a folder, a name on the hub, a model, "embedded", "smollm2", or the path of a GGUF file.
        budget, policy, allocator, p, signal, outliers, positions, sinks: as :class:`SqueezeCache` takes them;
            ``allocator`` may be the path of a saved plan. A share of 1 keeps everything.
        hf: whatever the ``hf`` backend takes (``dtype``, ``device``, ``batch_size``, ``max_length``, ...).

    Raises:
        ConfigError, BudgetError, UnknownNameError, PlanError: an argument cannot work.
        UnsupportedModelError: the model cannot be carried exactly.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        budget: Any = None,
        policy: str = DEFAULT_POLICY,
        allocator: str | None = None,
        p: float | None = None,
        signal: str | None = None,
        outliers: str | None = None,
        positions: str | None = None,
        sinks: int | None = None,
        **hf: Any,
    ) -> None:
        options = {"signal": signal, "outliers": outliers, "positions": positions, "sinks": sinks}
        self.caches = CacheMaker(budget, policy, allocator, p, options)
        if isinstance(pretrained, str) and is_named(pretrained):
            pretrained, tokenizer = _named(pretrained, hf.pop("device", None), hf.pop("dtype", None))
            hf.setdefault("tokenizer", tokenizer)
        with loading(pretrained, OSError) if isinstance(pretrained, str) else nullcontext():
            super().__init__(pretrained, **hf)
        self.caches.make(self.model, whole=1, new_tokens=0).detach()  # a model that cannot be carried is refused now
        self.held: dict[str, Held] = defaultdict(Held)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results: also the settings of the cache, and the bytes it held."""
        held = {
            kind: {"bytes": held.bytes, "full_bytes": held.full_bytes, "share": held.bytes / max(1, held.full_bytes)}
            for kind, held in self.held.items()
        }
        return {**super().get_model_info(), NAME: {**self.caches.describe(), "held": held}}

    # -------------------------------------------------------------- generation

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any) -> torch.Tensor:
        """Generate after a batch of prompts ``[B, T]``, padded on the left."""
        cache = self.caches.make(self.model, whole=max_length, new_tokens=max(0, max_length - context.shape[1]))
        tokens: torch.Tensor = super()._model_generate(
            context, max_length=max_length, stop=stop, past_key_values=cache, **settings
        )
        self.held["end of generation"].add(cache)
        cache.detach()
        return tokens

    # ---------------------------------------------------------- log-likelihood

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Score requests, in their order."""
        rows = override_bs or (self._detect_batch_size() if self.batch_size == "auto" else int(self.batch_size))
        fitted = [_fitted(context, continuation, self.max_length) for _, context, continuation in requests]
        texts, contexts = _sorted_out(requests, fitted)
        scorer = Scorer(self.model, self.caches, self.softmax_dtype, lambda point, cache: self.held[point].add(cache))
        answers: dict[int, Score] = {}
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Scoring continuations")
        with torch.autocast(
            self.device.type, self.mixed_precision_dtype, enabled=self.mixed_precision_dtype is not None
        ):
            for part in _batches(texts, rows):
                scores = scorer.alone([Text([*fitted[i][0], *fitted[i][1]], len(fitted[i][1])) for i in part])
                answers.update(zip(part, scores, strict=True))
                bar.update(len(part))
            for batch in _batches(contexts, rows):
                groups = [Group(fitted[same[0]][0], [fitted[i][1] for i in same]) for same in batch]
                for same, found in zip(batch, scorer.after_contexts(groups, rows), strict=True):
                    answers.update(zip(same, found, strict=True))
                    bar.update(len(same))
        bar.close()
        results = [(answers[i].log_likelihood, answers[i].greedy) for i in range(len(requests))]
        for (strings, *_), result in zip(requests, results, strict=True):
            if strings is not None:  # windows of a longer text are remembered as a whole, elsewhere
                self.cache_hook.add_partial("loglikelihood", strings, result)
        return results


def _fitted(context: list[int], continuation: list[int], most: int) -> tuple[list[int], list[int]]:
    """Context and continuation within the model's length: the context loses its beginning, as with ``hf``.

    The last token is never fed, so ``most + 1`` tokens fit. Raises :class:`InputError` for what cannot be scored.
    """
    if not context or not continuation:
        raise InputError("a request for a log-likelihood needs a context and a continuation of at least one token")
    if len(continuation) > most:
        raise InputError(f"a continuation of {len(continuation)} tokens is longer than the model's {most}")
    excess = len(context) + len(continuation) - (most + 1)
    if excess > 0:
        _LOG.warning("a context of %d tokens is too long by %d; its beginning is left out", len(context), excess)
    return context[max(0, excess) :], continuation


def _sorted_out(
    requests: Sequence[Request], fitted: Sequence[tuple[list[int], list[int]]]
) -> tuple[list[int], list[list[int]]]:
    """Indices of texts without a prompt, and those of the others by context; the longest first, to fail early."""
    alone: list[int] = []
    by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, ((strings, *_), (context, _)) in enumerate(zip(requests, fitted, strict=True)):
        if strings is None or len(context) < 2:
            alone.append(index)
        else:
            by_context[tuple(context)].append(index)
    alone.sort(key=lambda index: -sum(map(len, fitted[index])))
    return alone, [by_context[context] for context in sorted(by_context, key=lambda context: (-len(context), context))]


def _batches(items: Sequence[_Of], size: int) -> Iterator[Sequence[_Of]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _named(name: str, device: str | None, dtype: Any) -> tuple[Any, Any]:
    """A model that has a name here and its tokenizer, in fp32 on a GPU if there is one, unless told otherwise."""
    try:
        wanted = get_dtype("float32" if dtype in (None, "auto") else dtype)
    except AttributeError:
        wanted = None
    if not isinstance(wanted, torch.dtype) or not wanted.is_floating_point:
        raise ConfigError(f"cannot use the dtype {dtype!r}; give one of float32, float16, bfloat16")
    place = _device(device, name)
    loaded = load_named(name, wanted, warn=_LOG.warning, tell=_LOG.warning)
    if loaded is None:
        raise ConfigError(f"{name!r} is no model that has a name here")
    return loaded[0].to(place), loaded[1]


def _device(asked: str | None, name: str) -> str:
    """Where to compute. The harness asks for "cuda:0" unless it is told something: without a GPU that means the CPU,
    as it does for the ``hf`` backend."""
    if torch.cuda.is_available():
        return asked or "cuda"
    if asked is not None and asked.partition(":")[0] == "cuda":
        _LOG.warning("there is no CUDA device; %s runs on the CPU", name)
        return "cpu"
    return asked or "cpu"


def register() -> None:
    """Make ``--model squeeze`` known to the harness that runs in this process."""
    if NAME not in model_registry:
        model_registry.register(NAME, target="squeezeattention.integrations.lm_eval:SqueezeLM")


def main() -> None:
    """``lm_eval``, with this backend; a user's mistake in its arguments is one line and exit code 2."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except SqueezeError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


register()

if __name__ == "__main__":
    main()
