"""vLLM's OpenAI server with a plan: the command line for it, and a child process that ends as it should."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from types import FrameType

from ..errors import ConfigError, MissingExtraError
from .settings import EngineSettings

_OURS = ("--additional-config", "--model", "--host", "--port", "--api-key", "--block-size")
_NO_PREFIXES = "--no-enable-prefix-caching"
#: Where vLLM looks for the key that clients have to send.
API_KEY = "VLLM_API_KEY"
_GRACE = 30.0  # seconds that the server has to end ...
_LOOK = 1.0  # ... and between two looks whether it has


def server_command(
    model: str,
    settings: EngineSettings,
    *,
    block_size: int,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    max_num_seqs: int | None = None,
    more: Sequence[str] = (),
) -> list[str]:
    """Arguments that start the server; ``more``: options of vLLM's own. Raises :class:`ConfigError` for doubles."""
    for option in more:
        if (given := option.partition("=")[0]).replace("_", "-") in _OURS:  # vLLM takes either
            raise ConfigError(f"{given} is an option of squeeze serve itself; give it before --")
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", host, "--port",
        str(port), "--block-size", str(block_size), "--additional-config", json.dumps({"squeeze": settings.to_dict()}),
    ]  # fmt: skip
    if name is not None:
        command += ["--served-model-name", name]
    if max_num_seqs is not None:
        command += ["--max-num-seqs", str(max_num_seqs)]
    if settings.design == "slab" and settings.make_policy().needs_scores and _NO_PREFIXES not in more:
        command.append(_NO_PREFIXES)  # it would be refused: those queries' attention is needed
    return [*command, *more]


def check_installed() -> None:
    """Raise :class:`MissingExtraError` if there is no vLLM, without importing it (that takes many seconds)."""
    if find_spec("vllm") is None:
        raise MissingExtraError(
            "'vllm' is not installed; it comes with the 'vllm' extra: pip install \"squeezeattention[vllm]\"",
            name="vllm",
        )


def run_server(command: Sequence[str], host: str, api_key: str | None = None) -> int:
    """Run it until it ends, and return its exit code. Ctrl-C and SIGTERM are passed on, and it has half a minute to
    finish what it is doing; a second one, or the end of that time, ends it and its processes at once.

    ``api_key`` goes through the environment: all users of a machine can read the arguments of a process.
    """
    check_installed()
    # vLLM's own processes talk over this address too; without it they look for one of the machine's.
    environment = {"VLLM_HOST_IP": host if host not in ("0.0.0.0", "::") else "127.0.0.1", **os.environ}
    if api_key is not None:
        environment[API_KEY] = api_key
    # A group of its own: a Ctrl-C at the terminal reaches the server once, from here.
    server = subprocess.Popen(list(command), env=environment, start_new_session=True)

    asked: list[float] = []  # when it was told to end

    def pass_on(number: int, frame: FrameType | None) -> None:
        if server.poll() is None:
            asked.append(time.monotonic())
            if len(asked) == 1:
                server.send_signal(number)
            else:
                _kill(server)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return server.wait(_LOOK)
            if asked and time.monotonic() - asked[0] > _GRACE:
                _kill(server)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if server.poll() is None:
            server.terminate()
            try:
                server.wait(_GRACE)
            except subprocess.TimeoutExpired:
                _kill(server)


def _kill(server: subprocess.Popen[bytes]) -> None:
    """End a server and whatever it started, which is its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
