"""``squeeze generate``."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM

from squeezeattention import BudgetPlan, SqueezeCache, load_embedded
from squeezeattention.policies import StreamingLLM

from ..conftest import refused


def test_prints_only_the_text_to_stdout_and_a_report_to_stderr(squeeze: Any, prompt_file: Path) -> None:
    result = squeeze("generate", "embedded", "-f", prompt_file, "--budget", "0.3", "-n", 6, "--policy", "h2o")
    assert result.exit_code == 0, result.stderr
    model, tokenizer = load_embedded()
    ids = tokenizer(prompt_file.read_text(), return_tensors="pt").input_ids
    cache = SqueezeCache(model, 0.3, "h2o")
    out = model.generate(ids, past_key_values=cache, max_new_tokens=6, do_sample=False)
    assert result.stdout == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) + "\n"
    for word in ("probe plan", "layer", "memory:", "saved", "tokens/s"):
        assert word in result.stderr


def test_a_policy_with_options(squeeze: Any, prompt_file: Path) -> None:
    given = ("generate", "embedded", "-f", prompt_file, "--budget", "0.3", "-n", 6, "--policy")
    result = squeeze(*given, "streaming_llm:sinks=9")
    assert result.exit_code == 0, result.stderr
    model, tokenizer = load_embedded()
    ids = tokenizer(prompt_file.read_text(), return_tensors="pt").input_ids
    cache = SqueezeCache(model, 0.3, StreamingLLM(sinks=9))
    out = model.generate(ids, past_key_values=cache, max_new_tokens=6, do_sample=False)
    assert result.stdout == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) + "\n"
    for wrong, why in (("echo:replay=none", "replay"), ("echo:nothing=1", "nothing"), ("h2o:", "cannot read")):
        refused(squeeze(*given, wrong), why)


def test_json_has_everything(squeeze: Any, prompt_file: Path) -> None:
    result = squeeze("generate", "embedded", "-f", prompt_file, "-b", "32", "--json", "-n", 5)
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert set(data) == {
        "model", "prompt", "prompt_tokens", "chat", "system", "text", "tokens", "plan", "memory", "timings",
    }  # fmt: skip
    assert data["model"] == "embedded"
    assert data["prompt"] == str(prompt_file)
    assert (data["chat"], data["system"]) == (False, None)
    assert len(data["tokens"]) == 5
    plan = BudgetPlan.from_dict(data["plan"])
    assert plan.base_budget == 32
    assert plan.prompt_tokens == data["prompt_tokens"]
    memory = data["memory"]
    assert set(memory) == {"bytes", "index_bytes", "peak_bytes", "full_bytes", "saved"}
    assert memory["bytes"] < memory["peak_bytes"] <= memory["full_bytes"]
    assert memory["saved"] == pytest.approx(1 - memory["bytes"] / memory["full_bytes"])
    timings = data["timings"]
    assert timings["prefill_s"] > 0
    assert timings["tokens_per_s"] == pytest.approx(4 / timings["decode_s"])


def test_one_new_token_has_no_rate(squeeze: Any) -> None:
    result = squeeze("generate", "embedded", "-p", "import os\n", "-n", 1, "--json")
    assert json.loads(result.stdout)["timings"]["tokens_per_s"] is None


def test_stream_prints_the_same_text(squeeze: Any) -> None:
    arguments = ("generate", "embedded", "--prompt", "def main(argument):\n", "-n", 8)
    assert squeeze(*arguments, "--stream").stdout.strip() == squeeze(*arguments).stdout.strip()


def test_prompt_from_stdin_file_and_option_agree(squeeze: Any, tmp_path: Path) -> None:
    text = "class Reader:\n    def "
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbf" + text.encode())  # a byte order mark is no text
    ways = (("-p", text), ("-f", tmp_path / "text"), (), ("-f", "-"))
    outputs = {squeeze("generate", "embedded", *way, "-n", 4, text=text).stdout for way in ways}
    assert len(outputs) == 1


def test_options_reach_the_cache(squeeze: Any, model_folder: Path, prompt_file: Path, tmp_path: Path) -> None:
    saved = tmp_path / "plan.json"
    result = squeeze(
        "generate", model_folder, "-f", prompt_file, "--budget", "25%", "--policy", "streaming_llm",
        "--allocator", "squeeze", "--p", "0.5", "--outliers", "clamp", "--positions", "cache",
        "--dtype", "bfloat16", "--chunk-size", "40", "--max-new-tokens", "3", "--save-plan", saved, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    plan = BudgetPlan.load(saved)
    assert plan == BudgetPlan.from_dict(json.loads(result.stdout)["plan"])
    assert (plan.policy, plan.allocator, plan.p) == ("streaming_llm", "squeeze", 0.5)
    again = squeeze("generate", model_folder, "-p", "x = 1", "--allocator", saved, "-n", 3, "--json",
                    "--policy", "streaming_llm")  # fmt: skip
    assert json.loads(again.stdout)["plan"]["budgets"] == list(plan.budgets)


def test_sampling_follows_its_seed(squeeze: Any, model_folder: Path) -> None:
    def text(seed: int) -> str:
        result = squeeze(
            "generate",
            model_folder,
            "-p",
            "import ",
            "-n",
            12,
            "--sample",
            "--temperature",
            1.5,
            "--seed",
            seed,
        )
        assert result.exit_code == 0, result.stderr
        return str(result.stdout)

    state = torch.random.get_rng_state()
    assert text(1) == text(1) != text(2)
    torch.random.set_rng_state(state)


def test_more_tokens_than_positions_are_refused_or_cut_with_a_word(
    squeeze: Any, tmp_path: Path, model_folder: Path
) -> None:
    (tmp_path / "long").write_text("a = 1\n" * 130)
    command = ("generate", model_folder, "-f", tmp_path / "long", "-n", 2)
    refused(squeeze(*command), "520 tokens and 2 new ones", "512 positions", "--truncate")
    result = squeeze(*command, "--truncate", "--json")
    assert result.exit_code == 0, result.stderr
    assert "the last 510 tokens" in result.stderr
    assert json.loads(result.stdout)["prompt_tokens"] == 510
    refused(squeeze("plan", model_folder, tmp_path / "long"), "520 tokens are more", "--truncate")
    result = squeeze("plan", model_folder, tmp_path / "long", "--truncate", "--json")
    assert json.loads(result.stdout)["prompts"][0]["tokens"] == 512
    refused(squeeze("generate", model_folder, "-p", "a", "-n", 600), "600 new ones", "-n")


def test_a_bounded_prefill_never_holds_the_prompt(squeeze: Any, prompt_file: Path) -> None:
    options = ("generate", "embedded", "-f", prompt_file, "-b", "32", "-n", 2, "--json", "--prefill", "bounded")
    result = squeeze(*options, "--chunk-size", 16)
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    share = data["memory"]["peak_bytes"] / data["memory"]["full_bytes"]
    assert data["prompt_tokens"] > 100
    assert share <= (32 + 16) / data["prompt_tokens"]
    assert sum(data["plan"]["budgets"]) == 32 * len(data["plan"]["budgets"])
    result = squeeze(*options[:-1], "fast")
    assert result.exit_code == 2
    assert "prefill must be one of exact, bounded" in result.stderr


TURNS = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<answer>{% endif %}"


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """The model of ``model_folder`` with a chat template that begins with a token which the tokenizer adds as well."""
    folder = tmp_path_factory.mktemp("instruct") / "model"
    shutil.copytree(model_folder, folder)
    bos_adding_tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


def bos_adding_tokenizer(template: str) -> Any:
    tokenizer = load_embedded()[1]
    bos, number = tokenizer.eos_token, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{bos} $A", special_tokens=[(bos, number)])
    tokenizer.bos_token, tokenizer.chat_template = bos, template
    return tokenizer


def begins(text: str) -> list[int]:
    """Its tokens as the tokenizer itself begins a text: with one special token."""
    ids: list[int] = bos_adding_tokenizer(TEMPLATE)(text).input_ids
    assert ids[0] != ids[1]
    return ids


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens of each prompt that models were given."""
    seen: list[list[int]] = []
    generate = LlamaForCausalLM.generate

    @functools.wraps(generate)  # its arguments are looked at by name
    def watched(self: Any, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(inputs[0].tolist())
        return generate(self, inputs, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "generate", watched)
    return seen


@pytest.mark.parametrize(
    ("options", "text", "chat"),
    [
        ((), "<user>hello\n<answer>", True),
        (("--chat",), "<user>hello\n<answer>", True),
        (("--system", "be brief"), "<system>be brief\n<user>hello\n<answer>", True),
        (("--raw",), "hello", False),
        (("--question", "why?"), "<user>hello\n\nwhy?\n<answer>", True),
        (("--question", "why?", "--raw"), "hello\n\nwhy?", False),
    ],
)
def test_an_instruct_model_reads_turns(
    squeeze: Any, instruct: Path, read: Any, options: tuple[str, ...], text: str, chat: bool
) -> None:
    """By itself, and with one special token at the beginning, whoever puts it there."""
    result = squeeze("generate", instruct, "-p", "hello", *options, "-n", 2, "--json")
    assert result.exit_code == 0, result.stderr
    assert read == [begins(text)]
    data = json.loads(result.stdout)
    assert data["prompt_tokens"] == len(read[0])
    assert data["chat"] is chat
    assert data["system"] == ("be brief" if "--system" in options else None)


def test_what_was_done_with_the_prompt_is_one_line(squeeze: Any, instruct: Path, model_folder: Path) -> None:
    for folder, options, words in (
        (instruct, (), "a user's turn in the model's chat template"),
        (instruct, ("--system", "x"), "the system prompt and a user's turn"),
        (instruct, ("--raw",), "read as it is (--raw)"),
        (model_folder, (), "read as it is (the model has no chat template)"),
    ):
        result = squeeze("generate", folder, "-p", "hello", *options, "-n", 2)
        (line,) = (line for line in result.stderr.splitlines() if line.startswith("prompt:"))
        assert words in line


def test_the_template_stays_whole_when_the_text_is_cut(squeeze: Any, instruct: Path, tmp_path: Path, read: Any) -> None:
    text = "".join(f"{number} = 1\n" for number in range(200))
    (tmp_path / "long").write_text(text)
    command = ("generate", instruct, "-f", tmp_path / "long", "-q", "which?", "-n", 2)
    refused(squeeze(*command), "512 positions", "-n")
    assert read == []
    result = squeeze(*command, "--truncate", "--json")
    assert result.exit_code == 0, result.stderr
    assert 505 < len(read[0]) <= 510
    given = load_embedded()[1].decode(read[0][1:])
    assert given.startswith("<user>")
    assert given.endswith("199 = 1\n\nwhich?\n<answer>")


@pytest.mark.parametrize(
    ("template", "words"),
    [("{{ raise_exception('no system prompts') }}", "no system prompts"),
     ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "leaves the system")],
)  # fmt: skip
def test_templates_that_take_no_system_prompt(
    squeeze: Any, tmp_path: Path, model_folder: Path, template: str, words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    bos_adding_tokenizer(template).save_pretrained(folder)
    refused(squeeze("generate", folder, "-p", "hello", "--system", "be brief", "-n", 2), words)


def test_draws_are_those_that_were_asked_for(squeeze: Any, model_folder: Path) -> None:
    """One likely token is the likeliest; a tiny share as well, whatever the temperature."""
    greedy = squeeze("generate", model_folder, "-p", "import ", "-n", 12).stdout
    wild = ("generate", model_folder, "-p", "import ", "-n", 12, "--sample", "--temperature", 5)
    assert squeeze(*wild).stdout != greedy
    assert squeeze(*wild, "--top-k", 1).stdout == greedy
    assert squeeze(*wild, "--top-p", 1e-6).stdout == greedy
