"""A conversation of several turns on one squeezed cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..allocators import Fixed, resolve_allocator
from ..cache.cache import SqueezeCache
from ..cache.options import checked_tokens
from ..defaults import CHAT_BUDGET, DEFAULT_POLICY
from ..errors import CacheStateError, ConfigError, InputError, UnsupportedFeatureError
from ..positions import longest_text
from .following import followed, text_after
from .streaming import Watch, decoded
from .template import Turn, check_template, first_turns, render, token_ids

if TYPE_CHECKING:
    from ..allocators import Allocator
    from ..plan import Budget, BudgetPlan
    from ..policies import EvictionPolicy

#: Arguments of ``generate`` that say how tokens are drawn.
DRAWS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Reply:
    """An answer, and what it took."""

    text: str
    tokens: tuple[int, ...]
    """New tokens, the one that ended the answer included."""
    finished: bool
    """Whether the model ended its answer; else there was no room for more (``max_new_tokens``)."""
    read: int
    """Tokens that were read for this turn; earlier ones are in the cache, or evicted."""
    seen: int
    """Tokens of all turns so far that the cache was given."""
    bytes: int
    """Keys and values that the cache holds after the turn."""
    full_bytes: int
    """What a full cache would hold."""
    prefill_s: float
    """Seconds until the first new token."""
    decode_s: float
    """Seconds of all others."""
    tokens_per_s: float | None
    """New tokens a second after the first; ``None`` if there was one."""


class Conversation:
    """Several turns with an instruct model, on one :class:`~squeezeattention.SqueezeCache` that is kept over them.

    Each turn reads its own tokens only: what its message adds to the conversation in the tokenizer's chat template.
    Earlier turns are what the cache has kept of them. At the end of each message the cache is planned anew, a share
    being one of all tokens so far, and cut.

    Args:
        model: a transformers model that a SqueezeCache can serve.
        tokenizer: its tokenizer, with a chat template (not needed with ``raw``).
        budget, policy, allocator: of the cache, as :class:`~squeezeattention.SqueezeCache` takes them. No
            budget is one of 512 tokens a layer on average, where the allocator fixes none.
        system: the system prompt, before the first turn.
        raw: messages are read as they are, with nothing between them: for models that are no instruct models.
        reread: where the template writes earlier turns anew (it drops their reasoning, or moves the system prompt),
            forget what was read and read the whole conversation again, as the template now has it. Without it such a
            turn is refused: a cache cannot take back what it has read.
        options: whatever else the cache takes (``prefill="bounded"``, ``compile=True``, ...).

    Attributes:
        cache: the cache, for its ``plan``, ``memory()`` and ``lengths()``.

    Raises:
        ConfigError: the tokenizer has no chat template, ``system`` with ``raw``; and what the cache raises.
        InputError: the template refuses the system prompt, or leaves it out.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        budget: int | float | str | Budget | None = None,
        policy: str | EvictionPolicy = DEFAULT_POLICY,
        allocator: str | Allocator | BudgetPlan | list[int] | list[list[int]] | None = None,
        system: str | None = None,
        raw: bool = False,
        reread: bool = False,
        **options: Any,
    ) -> None:
        self.model, self.tokenizer, self.raw, self.reread = model, tokenizer, raw, reread
        if raw and reread:
            raise ConfigError("reread=True is for chat templates, which raw=True leaves out: choose one")
        self._check_system(system)
        self._system = system
        if budget is None and not isinstance(resolve_allocator(allocator), Fixed):
            budget = CHAT_BUDGET
        self.cache = SqueezeCache(model, budget, policy, allocator, **options)
        self._begin()

    def _check_system(self, system: str | None) -> None:
        if self.raw and system is not None:
            raise ConfigError("a system prompt is written by the chat template, which raw=True leaves out: choose one")
        if not self.raw:
            check_template(
                self.tokenizer, system, wanted="a conversation", instead="raw=True (--raw) sends text as it is"
            )

    def _begin(self) -> None:
        self._turns: list[Turn] = []
        self._ids: list[int] = []  # read and written so far; the last of them may be still to be read
        self._interrupted = False

    @property
    def system(self) -> str | None:
        return self._system

    @property
    def turns(self) -> list[Turn]:
        """Messages and answers so far, ``{"role": "user" or "assistant", "content": text}``."""
        return [dict(turn) for turn in self._turns]

    def reset(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.cache.reset()
        self._begin()

    def set_system(self, system: str | None) -> None:
        """Begin anew with another system prompt, or none. Raises as the constructor does, and then nothing changes."""
        self._check_system(system)
        self._system = system
        self.reset()

    def send(
        self,
        text: str,
        stream: Callable[[str], object] | None = None,
        *,
        max_new_tokens: int = 512,
        do_sample: bool = False,
        **draws: float,
    ) -> Reply:
        """Say ``text`` and return the answer; ``stream`` is called with each piece of it as soon as it is there.

        ``do_sample``: draw tokens, with ``temperature``, ``top_p``, ``top_k``, ``min_p``, ``repetition_penalty``,
        instead of taking the likeliest.

        Raises :class:`InputError` for an empty message, or where text and answer are more than the model's positions;
        :class:`ConfigError` for unknown draws or no new tokens; :class:`UnsupportedFeatureError` if the template
        writes earlier turns anew, without ``reread``; :class:`CacheStateError` after a turn that was interrupted. None
        of these changes anything.
        """
        self._check_draws(do_sample, draws)
        checked_tokens("max_new_tokens", max_new_tokens)
        if self._interrupted:
            raise CacheStateError("the turn before was interrupted, so its answer is not known: call reset()")
        if not text.strip():
            raise InputError("the message is empty")
        ids, anew = self._with(text)
        longest = longest_text(self.model)
        if longest is not None and len(ids) + max_new_tokens > longest:
            raise InputError(
                f"the conversation has {len(ids)} tokens, and with {max_new_tokens} new ones it is longer than the "
                f"{longest} positions that the model was made for: ask for fewer new tokens (max_new_tokens, -n), or "
                "begin anew (reset)"
            )
        if anew:
            self.cache.reset()
        before, watch = self.cache.get_seq_length(), Watch(self.tokenizer, stream)
        try:
            new = self._generate(ids, watch, max_new_tokens, {"do_sample": do_sample, **draws})
        except BaseException:
            self._interrupted = self.cache.get_seq_length() != before
            raise
        finished = new[-1] in self._ends
        answer = decoded(self.tokenizer, new)
        # The token that ends an answer was written, and never read: the template may end it in another way.
        self._ids = [*ids, *(new[:-1] if finished else new)]
        self._turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        memory = self.cache.memory()
        return Reply(
            answer, tuple(new), finished, len(ids) - before, self.cache.get_seq_length(), memory.bytes,
            memory.full_bytes, **watch.timings(len(new))._asdict(),
        )  # fmt: skip

    def _with(self, text: str) -> tuple[list[int], bool]:
        """The tokens so far and those that follow when ``text`` is said; whether all of them are to be read anew."""
        if self.raw:
            new = token_ids(self.tokenizer, text) if self._ids else list(self.tokenizer(text, verbose=False).input_ids)
            return [*self._ids, *new], False
        if not self._turns:
            return token_ids(self.tokenizer, render(self.tokenizer, first_turns(text, self._system))), False
        first, *rest, last = self._turns
        said = [*first_turns(first["content"], self._system), *rest]
        follows = text_after(self.tokenizer, said, last["content"], text)
        if follows is not None:
            return [*self._ids, *token_ids(self.tokenizer, follows)], False
        if self.reread:
            return token_ids(self.tokenizer, render(self.tokenizer, followed(said, last["content"], text))), True
        raise UnsupportedFeatureError(
            "the model's chat template writes earlier turns anew when another follows (it drops reasoning, or moves "
            "the system prompt), and a cache cannot take back what it has read: reread=True (--reread) reads all turns "
            "again where that happens; or begin anew with reset()"
        )

    def _generate(self, ids: list[int], watch: Watch, max_new_tokens: int, draws: dict[str, Any]) -> list[int]:
        given = torch.tensor([ids], device=self.model.device)
        ends = self._ends
        output = self.model.generate(
            given,
            attention_mask=torch.ones_like(given),
            past_key_values=self.cache,
            max_new_tokens=max_new_tokens,
            num_beams=1,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,  # nothing is padded; without one generate remarks on it
            streamer=watch,
            **draws,
        )
        new: list[int] = output[0, len(ids) :].tolist()
        return new

    @property
    def _ends(self) -> list[int]:
        """Tokens that end an answer: those of the model's generation config, and the tokenizer's own."""
        own = self.model.generation_config.eos_token_id
        found = [*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id]
        return [token for token in dict.fromkeys(found) if token is not None]

    def _check_draws(self, do_sample: bool, draws: dict[str, float]) -> None:
        unknown = [name for name in draws if name not in DRAWS]
        if unknown:
            raise ConfigError(f"unknown ways to draw tokens: {', '.join(unknown)}; there are {', '.join(DRAWS)}")
        if draws and not do_sample:
            raise ConfigError(f"{' and '.join(draws)} change nothing unless tokens are drawn: give do_sample=True")
