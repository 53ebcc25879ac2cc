"""``squeeze chat``."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from squeezeattention import load_embedded
from squeezeattention.chat import Conversation

from ..conftest import refused

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>\n{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """The model of ``model_folder`` with a chat template."""
    folder = tmp_path_factory.mktemp("instruct") / "model"
    shutil.copytree(model_folder, folder)
    _, tokenizer = load_embedded()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def talk(instruct: Path) -> Conversation:
    """The same conversation in the library."""
    _, tokenizer = load_embedded()
    tokenizer.chat_template = TEMPLATE
    return Conversation(AutoModelForCausalLM.from_pretrained(instruct).eval(), tokenizer, budget=24, policy="h2o")


OPTIONS = ("-b", "24", "--policy", "h2o", "-n", 5)


def test_lines_of_a_pipe_are_messages(squeeze: Any, instruct: Path, talk: Conversation) -> None:
    """Answers alone on stdout; one line each on stderr, which has the bytes."""
    result = squeeze("chat", instruct, *OPTIONS, text="import os\n\nclass Reader:\r\n//no command")
    assert result.exit_code == 0, (result.stderr, result.exception)
    replies = [talk.send(text, max_new_tokens=5) for text in ("import os", "class Reader:", "/no command")]
    assert result.stdout == "".join(reply.text + "\n" for reply in replies)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 3
    for line, reply in zip(lines, replies, strict=True):
        assert f"{reply.read} tokens read, 5 new, cut off" in line
        assert "KiB held, a full cache" in line
        assert "tokens/s" in line


def test_json_is_one_object_a_turn(squeeze: Any, instruct: Path, talk: Conversation) -> None:
    text = "import os\n/plan\nimport sys\n/reset\nimport os\n/exit\nnever read\n"
    result = squeeze("chat", instruct, *OPTIONS, "--json", text=text)
    assert result.exit_code == 0, (result.stderr, result.exception)
    first, plan, second, third = (json.loads(line) for line in result.stdout.splitlines())
    want = talk.send("import os", max_new_tokens=5)
    assert plan["plan"]["budgets"] == list(talk.cache.plan.budgets)
    assert second["tokens"] == list(talk.send("import sys", max_new_tokens=5).tokens)
    assert [first["turn"], second["turn"], third["turn"]] == [1, 2, 1]
    assert first["message"] == third["message"] == "import os"
    for key in ("text", "read", "seen", "bytes", "full_bytes", "finished"):
        assert first[key] == third[key] == getattr(want, key)
    assert second["bytes"] < second["full_bytes"]


def test_system_prompts(squeeze: Any, instruct: Path, talk: Conversation) -> None:
    text = "/system\nhello\n/system be brief\n/system\nhello\n/plan\n"
    result = squeeze("chat", instruct, *OPTIONS, text=text)
    assert result.exit_code == 0, (result.stderr, result.exception)
    alone = talk.send("hello", max_new_tokens=5)
    talk.set_system("be brief")
    told = talk.send("hello", max_new_tokens=5)
    assert result.stdout == f"{alone.text}\n{told.text}\n"
    for words in ("there is no system prompt", "system prompt: be brief", f"{told.read} tokens read", "probe plan"):
        assert words in result.stderr
    given = squeeze("chat", instruct, *OPTIONS, "--system", "be brief", text="hello\n")
    assert given.stdout == f"{told.text}\n"


def test_a_file_goes_before_the_next_message(
    squeeze: Any, instruct: Path, talk: Conversation, prompt_file: Path
) -> None:
    lines = f"/read {prompt_file}\nwhat is it?\nand now?\n/read {prompt_file}\n/reset\nwhat is it?\n"
    result = squeeze("chat", instruct, *OPTIONS, "--json", text=lines)
    assert result.exit_code == 0, (result.stderr, result.exception)
    first, second, third = (json.loads(line) for line in result.stdout.splitlines())
    want = talk.send(prompt_file.read_text().rstrip() + "\n\nwhat is it?", max_new_tokens=5)
    assert (first["read"], first["tokens"]) == (want.read, list(want.tokens))
    assert second["message"] == "and now?"
    assert third["message"] == "what is it?"
    assert "500 characters" in result.stderr


def test_a_model_without_a_template_is_refused_unless_raw(squeeze: Any, model_folder: Path) -> None:
    refused(squeeze("chat", "embedded", text="hello\n"), "chat template", "no instruct model", "--raw")
    refused(squeeze("chat", "embedded", "--raw", "--system", "x", text="hello\n"), "--system", "--raw")
    result = squeeze("chat", model_folder, "--raw", "-n", 3, "--json", text="import os\nimport sys\n")
    assert result.exit_code == 0, (result.stderr, result.exception)
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    tokenizer = load_embedded()[1]
    assert first["read"] == len(tokenizer("import os").input_ids)
    assert second["read"] == 1 + len(tokenizer("import sys").input_ids)


@pytest.mark.parametrize(
    ("lines", "words"),
    [("/rest\n", ("/rest", "/reset", "//")), ("/reset now\n", ("/reset now",)), ("/read\n", ("/read FILE",)),
     ("/read no/such/file\n", ("no/such/file",)), (b"\xff\n", ("line 1", "UTF-8")),
     ("a" * 2000, ("512 positions", "-n"))],
)  # fmt: skip
def test_the_first_error_ends_a_pipe(squeeze: Any, instruct: Path, lines: Any, words: tuple[str, ...]) -> None:
    refused(squeeze("chat", instruct, text=lines), *words)


def test_bad_options_are_told_before_the_model_is_loaded(squeeze: Any) -> None:
    for options, words in (
        (("--top-k", 3), ("--top-k", "--sample")),
        (("--policy", "h20"), ("did you mean 'h2o'",)),
        (("--budget", "0"), ("budget",)),
    ):
        refused(squeeze("chat", "/no/such/model", *options, text="x\n"), *words)


# --------------------------------------------------------- as a process, for signals and terminals


def started(instruct: Path, **pipes: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "squeezeattention", "chat", str(instruct), *map(str, OPTIONS)]
    return subprocess.Popen(command, env={**os.environ, "TERM": "dumb"}, preexec_fn=_interruptible, **pipes)


def _interruptible() -> None:
    """Ctrl-C as in a terminal; what is started in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_with_130(instruct: Path) -> None:
    """Once a message was answered, while the next one is waited for."""
    with started(instruct, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"import os\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in errors
    assert b"Traceback" not in errors


def test_a_terminal_is_asked_and_errors_do_not_end_it(instruct: Path, talk: Conversation) -> None:
    """Until Ctrl-D; stdout, which is no terminal here, has answers alone."""
    ours, theirs = pty.openpty()
    try:
        with started(instruct, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            os.write(ours, b"/what\nimport os\n\x04")
            output, errors = process.communicate(timeout=120)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0, errors
    assert output.decode() == talk.send("import os", max_new_tokens=5).text + "\n"
    for words in (b"> ", b"/reset", b"error: cannot do '/what'", b"tokens read"):
        assert words in errors
