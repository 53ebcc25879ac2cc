"""``Conversation``: its tokens are those of one cache, or of the full text, driven by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from squeezeattention import SqueezeCache
from squeezeattention.chat import Conversation
from squeezeattention.errors import CacheStateError, ConfigError, InputError, UnsupportedFeatureError

MESSAGES = ("def area(width, height):\n    return width * height", "import os", "class Reader:\n    pass\n# more")
NEW = 7


def ids_of(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return found


def by_hand(model: Any, tokenizer: Any, cache: SqueezeCache, opening: str = "") -> list[list[int]]:
    """Each answer's tokens, greedily, forward by forward; turns are written out as the template's author would."""
    answers: list[list[int]] = []
    waiting: list[int] = []  # the last token of an answer is not read before the next turn
    for number, message in enumerate(MESSAGES):
        before = "<end>\n" if number else opening
        new = [*waiting, *ids_of(tokenizer, f"{before}[user]{message}<end>\n[assistant]")]
        with torch.no_grad():
            with cache.prefilling():
                logits = model(input_ids=torch.tensor([new]), past_key_values=cache).logits
            answer = [int(logits[0, -1].argmax())]
            while len(answer) < NEW:
                logits = model(input_ids=torch.tensor([answer[-1:]]), past_key_values=cache).logits
                answer.append(int(logits[0, -1].argmax()))
        waiting = answer[-1:]
        answers.append(answer)
    return answers


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": 16, "policy": "h2o", "allocator": "uniform"},
        {"budget": 12, "policy": "streaming_llm", "allocator": "squeeze"},
        {"budget": 14},
        {"budget": 0.3, "policy": "h2o", "min_tokens": 1},
        {"budget": 16, "policy": "h2o", "allocator": "uniform", "prefill": "bounded", "chunk_size": 8},
    ],
    ids=["h2o", "streaming", "default", "share", "bounded"],
)
@pytest.mark.parametrize("system", [None, "be brief"])
def test_turns_are_those_of_one_cache_by_hand(
    model: Any, tokenizer: Any, settings: dict[str, Any], system: str | None
) -> None:
    talk = Conversation(model, tokenizer, system=system, **settings)
    replies = [talk.send(message, max_new_tokens=NEW) for message in MESSAGES]
    # ``generate`` tells how long an answer may get, forwards by hand do not.
    cache = SqueezeCache(model, **settings, new_tokens=NEW)
    opening = "" if system is None else f"[system]{system}<end>\n"
    assert [list(reply.tokens) for reply in replies] == by_hand(model, tokenizer, cache, opening)
    assert talk.cache.lengths() == cache.lengths()
    assert replies[-1].bytes == cache.memory().bytes < replies[-1].full_bytes


@pytest.mark.parametrize("budget", [1.0, 500])
def test_a_budget_above_the_text_gives_what_the_whole_text_gives(model: Any, tokenizer: Any, budget: Any) -> None:
    """Of stock transformers, which reads all of it anew in every turn."""
    talk = Conversation(model, tokenizer, budget=budget)
    ids: list[int] = []
    for number, message in enumerate(MESSAGES):
        reply = talk.send(message, max_new_tokens=NEW)
        end = "<end>\n" if number else ""
        ids += ids_of(tokenizer, f"{end}[user]{message}<end>\n[assistant]")
        whole = torch.tensor([ids])
        out = model.generate(
            whole, attention_mask=torch.ones_like(whole), max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
        assert list(reply.tokens) == out[0, len(ids) :].tolist()
        ids = out[0].tolist()
        assert reply.seen == len(ids) - 1
        assert reply.bytes == reply.full_bytes
        assert not reply.finished


def test_a_turn_reads_its_own_tokens_only(model: Any, tokenizer: Any) -> None:
    read: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        talk = Conversation(model, tokenizer, budget=16, policy="h2o", allocator="uniform")
        for number, message in enumerate(MESSAGES):
            read.clear()
            reply = talk.send(message, max_new_tokens=NEW)
            own = len(ids_of(tokenizer, f"{'<end>' if number else ''}[user]{message}<end>\n[assistant]"))
            assert reply.read == read[0]
            assert read[1:] == [1] * (NEW - 1)
            assert own <= read[0] <= own + 2  # a line's end, and the answer's last token
    finally:
        hook.remove()


@pytest.fixture
def ending(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """The model ends its first answer with the fourth token that it writes."""
    token = Conversation(model, tokenizer, budget=1.0).send(MESSAGES[0], max_new_tokens=4).tokens[-1]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [token])
    return token


def test_the_token_that_ends_an_answer_is_not_read(model: Any, tokenizer: Any, ending: int) -> None:
    """The template ends the answer, once: in the next turn its text follows what the model said."""
    talk = Conversation(model, tokenizer, budget=1.0)
    first = talk.send(MESSAGES[0], max_new_tokens=NEW)
    assert first.finished
    assert first.tokens[-1] == ending
    assert len(first.tokens) <= 4
    second = talk.send(MESSAGES[1], max_new_tokens=NEW)
    text = ids_of(tokenizer, f"[user]{MESSAGES[0]}<end>\n[assistant]")
    text += [*first.tokens[:-1], *ids_of(tokenizer, f"<end>\n[user]{MESSAGES[1]}<end>\n[assistant]")]
    whole = torch.tensor([text])
    out = model.generate(
        whole, attention_mask=torch.ones_like(whole), max_new_tokens=NEW, do_sample=False, pad_token_id=0,
        eos_token_id=talk._ends,
    )  # fmt: skip
    assert list(second.tokens) == out[0, len(text) :].tolist()
    assert second.seen == out.shape[1] - 1


def test_the_tokenizers_own_end_counts(model: Any, tokenizer: Any) -> None:
    token = Conversation(model, tokenizer, budget=1.0).send(MESSAGES[0], max_new_tokens=3).tokens[-1]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token)
    reply = Conversation(model, tokenizer, budget=1.0).send(MESSAGES[0], max_new_tokens=NEW)
    assert reply.finished
    assert len(reply.tokens) <= 3


def test_pieces_are_the_answer(model: Any, tokenizer: Any) -> None:
    pieces: list[str] = []
    reply = Conversation(model, tokenizer, budget=16).send(MESSAGES[0], pieces.append, max_new_tokens=60)
    assert len(pieces) > 20
    assert "".join(pieces) == reply.text == tokenizer.decode(list(reply.tokens), skip_special_tokens=True)


def test_it_remembers_turns_and_forgets_them(model: Any, tokenizer: Any) -> None:
    talk = Conversation(model, tokenizer, budget=16, system="be brief")
    first = talk.send(MESSAGES[0], max_new_tokens=NEW)
    talk.send(MESSAGES[1], max_new_tokens=NEW)
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 2
    assert talk.turns[1]["content"] == first.text
    talk.reset()
    assert talk.turns == []
    assert talk.cache.get_seq_length() == 0
    again = talk.send(MESSAGES[0], max_new_tokens=NEW)
    assert (again.tokens, again.read, again.bytes) == (first.tokens, first.read, first.bytes)
    talk.set_system(None)
    alone = talk.send(MESSAGES[0], max_new_tokens=NEW)
    assert alone.read == len(ids_of(tokenizer, f"[user]{MESSAGES[0]}<end>\n[assistant]")) < first.read


def test_a_talk_has_a_budget_in_tokens_or_its_plan(model: Any, tokenizer: Any) -> None:
    talk = Conversation(model, tokenizer)
    talk.send(MESSAGES[0], max_new_tokens=NEW)
    assert talk.cache.plan is not None
    assert talk.cache.plan.base_budget == 512
    fixed = Conversation(model, tokenizer, allocator=[9, 8, 7, 6])
    fixed.send(MESSAGES[0], max_new_tokens=NEW)
    assert fixed.cache.lengths() == [9, 8, 7, 6]


def test_raw_text_goes_on_as_it_is(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = None
    talk = Conversation(model, tokenizer, budget=1.0, raw=True)
    first = talk.send("import os", max_new_tokens=NEW)
    second = talk.send("\nimport sys", max_new_tokens=NEW)
    text = [*ids_of(tokenizer, "import os"), *first.tokens, *ids_of(tokenizer, "\nimport sys")]
    whole = torch.tensor([text])
    out = model.generate(whole, attention_mask=torch.ones_like(whole), max_new_tokens=NEW, pad_token_id=0)
    assert list(second.tokens) == out[0, len(text) :].tolist()


def test_an_interrupted_turn_is_no_answer(model: Any, tokenizer: Any) -> None:
    talk = Conversation(model, tokenizer, budget=16)
    talk.send(MESSAGES[0], max_new_tokens=NEW)

    def stop(piece: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.send(MESSAGES[1], stop, max_new_tokens=NEW)
    with pytest.raises(CacheStateError, match=r"interrupted.*reset"):
        talk.send(MESSAGES[1])
    assert len(talk.turns) == 2
    talk.reset()
    assert talk.send(MESSAGES[0], max_new_tokens=NEW).text


@pytest.mark.parametrize(
    ("send", "error", "words"),
    [
        (("  \n", {}), InputError, "empty"),
        (("x" * 9, {"max_new_tokens": 510}), InputError, r"510 new ones .* 512 positions"),
        (("x", {"max_new_tokens": 0}), ConfigError, "max_new_tokens"),
        (("x", {"top_k": 3}), ConfigError, "top_k change nothing"),
        (("x", {"do_sample": True, "num_beams": 2}), ConfigError, "num_beams"),
    ],
)
def test_messages_that_cannot_be_sent_change_nothing(
    model: Any, tokenizer: Any, send: tuple[str, dict[str, Any]], error: type[Exception], words: str
) -> None:
    talk = Conversation(model, tokenizer, budget=16)
    talk.send(MESSAGES[0], max_new_tokens=NEW)
    seen, turns = talk.cache.get_seq_length(), talk.turns
    with pytest.raises(error, match=words):
        talk.send(send[0], **send[1])
    assert (talk.cache.get_seq_length(), talk.turns) == (seen, turns)
    assert talk.send(MESSAGES[1], max_new_tokens=NEW).text


def test_what_cannot_be_a_conversation(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"raw=True.*choose one"):
        Conversation(model, tokenizer, raw=True, system="be brief")
    tokenizer.chat_template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(InputError, match="leaves the system prompt out"):
        Conversation(model, tokenizer, system="be brief")
    talk = Conversation(model, tokenizer)
    with pytest.raises(InputError, match="leaves the system prompt out"):
        talk.set_system("be brief")
    assert talk.system is None
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"chat template.*raw=True"):
        Conversation(model, tokenizer)


# ------------------------------------------------------------------- templates

#: The system prompt stands in the newest message, as in some of Mistral's.
MOVES = (
    "{% for m in messages %}{% if m.role == 'user' %}[user]"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}{{ m.content }}"
    "{% elif m.role == 'assistant' %}[assistant]{{ m.content }}<end>{% endif %}{% endfor %}"
)
#: Earlier answers lose what they begin with, as reasoning models do it.
DROPS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content[4:] if m.role == 'assistant' else m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize(("template", "system"), [(MOVES, "be brief"), (DROPS, None)], ids=["moves", "drops"])
def test_templates_that_rewrite_earlier_turns_are_refused(
    model: Any, tokenizer: Any, template: str, system: str | None
) -> None:
    tokenizer.chat_template = template
    talk = Conversation(model, tokenizer, budget=16, system=system)
    first = talk.send(MESSAGES[0], max_new_tokens=NEW)
    with pytest.raises(UnsupportedFeatureError, match=r"writes earlier turns anew.*reread=True.*reset"):
        talk.send(MESSAGES[1])
    assert len(talk.turns) == 2
    assert talk.cache.get_seq_length() == first.seen
    talk.reset()
    assert talk.send(MESSAGES[0], max_new_tokens=NEW).tokens == first.tokens


def test_rewritten_turns_are_read_anew_when_asked(model: Any, tokenizer: Any) -> None:
    """What is read, and answered, is what a first turn of the same text would be."""
    tokenizer.chat_template = DROPS
    talk = Conversation(model, tokenizer, budget=16, policy="h2o", allocator="uniform", reread=True)
    first = talk.send(MESSAGES[0], max_new_tokens=NEW)
    second = talk.send(MESSAGES[1], max_new_tokens=NEW)
    text = f"[user]{MESSAGES[0]}<end>[assistant]{first.text[4:]}<end>[user]{MESSAGES[1]}<end>[assistant]"
    alone = Conversation(model, tokenizer, budget=16, policy="h2o", allocator="uniform", raw=True)
    want = alone.send(text, max_new_tokens=NEW)
    assert (second.read, second.tokens, second.bytes) == (want.read, want.tokens, want.bytes)
    assert len(talk.turns) == 4
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"reread=True.*choose one"):
        Conversation(model, tokenizer, raw=True, reread=True)


def test_templates_may_trim_answers(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model wrote stays as it is; what follows is the template's."""
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} <end>{% endfor %}[assistant]"
    )
    monkeypatch.setattr("squeezeattention.chat.conversation.decoded", lambda *_: "\n an answer \n")
    talk = Conversation(model, tokenizer, budget=1.0)
    first = talk.send(MESSAGES[0], max_new_tokens=NEW)
    second = talk.send(MESSAGES[1], max_new_tokens=NEW)
    opened = len(ids_of(tokenizer, f"[user] {MESSAGES[0]} <end>[assistant]"))
    assert first.read == opened
    assert second.read == 1 + len(ids_of(tokenizer, f" <end>[user] {MESSAGES[1]} <end>[assistant]"))
